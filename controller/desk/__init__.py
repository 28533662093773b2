"""The state of one pool: who waits, what is in flight, what a place costs, how tenants stand.

Single-threaded and without I/O; every call is told the time. The service drives it with real workers, the
simulator with others.
"""

from controller.desk.desk import Desk
from controller.desk.flight import Adjustment, Done, Flight, Objective, Settlement
from controller.desk.tenants import Standing, Tenant, Tenants
from controller.desk.waiting import Ticket

__all__ = [
    "Adjustment",
    "Desk",
    "Done",
    "Flight",
    "Objective",
    "Settlement",
    "Standing",
    "Tenant",
    "Tenants",
    "Ticket",
]
