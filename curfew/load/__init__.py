"""Open-loop load: requests are sent when they are due, whatever became of those before."""

from curfew.load.arrivals import Arrival, poisson, question, read_trace
from curfew.load.report import Report, percentile
from curfew.load.run import Sample, run

__all__ = ["Arrival", "Report", "Sample", "percentile", "poisson", "question", "read_trace", "run"]
