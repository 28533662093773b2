"""The workers: what is known of each, the choice among them, and the connections to them."""

from controller.fleet.fleet import Fleet
from controller.fleet.members import Source
from controller.fleet.roster import Roster, Sent
from controller.fleet.worker import Worker

__all__ = ["Fleet", "Roster", "Sent", "Source", "Worker"]
