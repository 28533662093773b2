"""Shows a stream of events to a person as it comes."""

from curfew.show.countdown import Countdown
from curfew.show.lines import Lines, LiveLines
from curfew.show.stream import StreamView
from curfew.show.words import mode, spoken

__all__ = ["Countdown", "Lines", "LiveLines", "StreamView", "mode", "spoken"]
