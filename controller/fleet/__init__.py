"""The workers: which there are, how busy each is, which to take."""

from controller.fleet.fleet import Fleet, Sent
from controller.fleet.worker import Worker

__all__ = ["Fleet", "Sent", "Worker"]
