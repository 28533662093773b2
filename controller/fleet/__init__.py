"""The workers: which there are, how busy each is, which to take."""

from controller.fleet.fleet import Fleet
from controller.fleet.worker import Worker

__all__ = ["Fleet", "Worker"]
