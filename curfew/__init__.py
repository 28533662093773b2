"""The contracts, the client and the `curfew` command: what other teams install and import."""

from curfew.client import *  # noqa: F403  # the client's names are the package's
from curfew.client import __all__ as __all__
