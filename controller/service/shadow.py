"""A second policy decides beside the first, without acting: what it would have done otherwise is counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from controller.desk.desk import Desk, NoWorkerError
from controller.desk.flight import Flight
from controller.planning.decision import Ask, Decision, Refusal, RefusedFor
from controller.policy import LivePolicy, Policy, PolicyError, Reloads

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Differences:
    """What a shadow policy would have done otherwise with a tenant's requests. The fields are those of
    curfew.v1.ShadowDifferences, with sums over those that both served instead of means.
    """

    compared: int = 0
    admission: int = 0
    mode: int = 0
    budget: int = 0
    served_by_shadow_only: int = 0
    both_served: int = 0
    budget_delta_tokens: int = 0
    promised_delta: float = 0.0
    predicted_delta_s: float = 0.0

    def note(self, real: Decision | Refusal, shadow: Decision | Refusal | None) -> None:
        """Counts a request. None is for a tenant that the shadow policy does not know."""
        self.compared += 1
        if not isinstance(real, Decision) or not isinstance(shadow, Decision):
            if isinstance(real, Decision) != isinstance(shadow, Decision):
                self.admission += 1
                self.served_by_shadow_only += isinstance(shadow, Decision)
            return
        self.both_served += 1
        self.mode += real.mode is not shadow.mode
        self.budget += real.budget_tokens != shadow.budget_tokens
        self.budget_delta_tokens += shadow.budget_tokens - real.budget_tokens
        self.promised_delta += shadow.promised_probability - real.promised_probability
        self.predicted_delta_s += shadow.predicted_s - real.predicted_s


class ShadowPolicy:
    """Owns the second policy and the differences, which begin anew with each version of it.

    Nothing that is wrong with it reaches a request: a bad file leaves the version before, or none, and a
    fault is logged and counted.
    """

    def __init__(self, read: Callable[[], Policy], desk: Desk) -> None:
        """read: loads the policy; now, and later in a thread of its own. Raises PolicyError."""
        self._read = read
        self._desk = desk
        self._live: LivePolicy | None = None
        self._rejected: PolicyError | None = None
        self._rejections = 0  # before any was fit for use
        self._differences: dict[str, Differences] = {}
        self.faults = 0
        try:
            self._live = LivePolicy(read)
        except PolicyError as error:
            self._rejected = error
            log.error("no shadow policy:\n%s", error)

    @property
    def current(self) -> Policy | None:
        """The policy; None as long as none was fit for use."""
        return None if self._live is None else self._live.current

    @property
    def rejected(self) -> PolicyError | None:
        """Why what was last read is not in use; None when it is."""
        return self._rejected if self._live is None else self._live.rejected

    @property
    def reloads(self) -> Reloads:
        """How often it was read again."""
        live = Reloads() if self._live is None else self._live.reloads
        return Reloads(live.ok, live.rejected + self._rejections)

    def differences(self, tenant: str) -> Differences:
        """Those of a tenant."""
        return self._differences.get(tenant) or Differences()

    async def reload(self) -> bool:
        """Reads again. Returns whether there is another policy now.

        Raises PolicyError, and what was there stays.
        """
        if self._live is not None:
            changed = await self._live.reload()
        else:
            try:
                self._live = await asyncio.to_thread(LivePolicy, self._read)
            except PolicyError as error:
                self._rejected = error
                self._rejections += 1
                raise
            self._live.reloads.ok += 1
            changed = True
        if changed:
            self._differences.clear()
        return changed

    def compare(
        self, tenant: str, ask: Ask, labels: Mapping[str, str], verdict: Flight | Refusal, now_s: float
    ) -> None:
        """Decides what was just decided."""
        policy = self.current
        if policy is None or (isinstance(verdict, Refusal) and verdict.reason is RefusedFor.CROWD):
            return  # which says nothing of a policy
        try:
            shadow = self._decide(policy, tenant, ask, labels, verdict, now_s)
        except NoWorkerError:
            return
        except Exception:
            self.faults += 1
            if self.faults == 1:
                log.exception("the shadow policy cannot decide; further faults are only counted")
            return
        real = verdict if isinstance(verdict, Refusal) else verdict.decision
        self._differences.setdefault(tenant, Differences()).note(real, shadow)

    def _decide(
        self,
        policy: Policy,
        tenant: str,
        ask: Ask,
        labels: Mapping[str, str],
        verdict: Flight | Refusal,
        now_s: float,
    ) -> Decision | Refusal | None:
        granted = policy.tenants.get(tenant)
        if granted is None:
            return None
        granted = granted.for_labels(labels)
        if isinstance(verdict, Flight):
            return self._desk.look_instead(verdict.placement, granted, now_s)
        return self._desk.look(ask, granted, now_s)[1]
