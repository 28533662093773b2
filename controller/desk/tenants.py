"""What a controller remembers of each tenant while it runs."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

from controller.desk.peers import Alone, Peers, SharedOffset
from controller.planning.calibration import Calibration
from controller.planning.decision import RefusedFor
from controller.planning.learnt_quality import QualityModel
from controller.planning.lengths import LengthModel
from controller.policy import Brownout


@dataclass(slots=True)
class Standing:
    """How a tenant stands, since the controller started.

    requests: that ended, however they did. answered, failed: of these; the rest were left by their callers.
    kept: of the answered ones, those that kept every objective. held: those that ended within their predicted
    latency. promised_sum: of the probabilities promised for them. decided: requests that were given a place,
    by how far load had squeezed them. refused: those that were not, by why.
    """

    requests: int = 0
    answered: int = 0
    kept: int = 0
    held: int = 0
    failed: int = 0
    promised_sum: float = 0.0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    probe_tokens: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    decided: dict[Brownout, int] = field(default_factory=lambda: dict.fromkeys(Brownout, 0))
    refused: dict[RefusedFor, int] = field(default_factory=lambda: dict.fromkeys(RefusedFor, 0))

    def note_decided(self, brownout: Brownout) -> None:
        """Counts a request that was given a place."""
        self.decided[brownout] += 1

    def note_refused(self, reason: RefusedFor) -> None:
        """Counts a request that was refused."""
        self.refused[reason] += 1
        self.note_failed()

    def note_answered(
        self,
        kept: bool,
        held: bool,
        promised: float,
        latency_s: float,
        output_tokens: int,
        reasoning_tokens: int,
        probe_tokens: int = 0,
    ) -> None:
        """Counts a request that was answered."""
        self.requests += 1
        self.answered += 1
        self.kept += kept
        self.held += held
        self.promised_sum += promised
        self.output_tokens += output_tokens
        self.reasoning_tokens += reasoning_tokens
        self.probe_tokens += probe_tokens
        self.latencies_s.append(latency_s)

    def note_failed(self) -> None:
        """Counts a request that was refused or failed."""
        self.requests += 1
        self.failed += 1

    def note_left(self) -> None:
        """Counts a request whose caller left."""
        self.requests += 1

    @property
    def mean_promised(self) -> float:
        """Mean of the probabilities promised for the answered requests; 0 without any."""
        return self.promised_sum / self.answered if self.answered else 0.0

    @property
    def median_latency_s(self) -> float:
        """Median latency of the last answered requests; 0 without any."""
        return statistics.median(self.latencies_s) if self.latencies_s else 0.0


@dataclass(slots=True)
class Tenant:
    """A tenant's learnt lengths and quality, how far its plans' predictions can be trusted, and its
    standing.
    """

    lengths: LengthModel = field(default_factory=LengthModel)
    quality: QualityModel = field(default_factory=QualityModel)
    calibration: Calibration = field(default_factory=Calibration)
    standing: Standing = field(default_factory=Standing)


class Tenants:
    """All tenants by name; outlives the policies that name them."""

    def __init__(self, peers: Peers | None = None) -> None:
        """peers: with whom their calibration is shared; None shares it with nobody."""
        self._peers = peers or Alone()
        self._by_name: dict[str, Tenant] = {}

    def __getitem__(self, name: str) -> Tenant:
        """The tenant of this name, which a policy gives. One that was not asked for before is new."""
        tenant = self._by_name.get(name)
        if tenant is None:
            calibration = Calibration(SharedOffset(self._peers, name))
            tenant = self._by_name[name] = Tenant(calibration=calibration)
        return tenant
