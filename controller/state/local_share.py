"""What one controller lets in of a tenant while it decides alone."""

from __future__ import annotations

from controller.state.bucket import charged, wait_us
from controller.state.store import Limit, Limits, Verdict


class LocalShare:
    """A tenant's limits, divided by the controllers that were alive when the store was last there.

    Together they then let in the whole limit, and one burst more than that at most, since each begins with
    its part of the burst.
    """

    __slots__ = ("_rate_us", "_tokens_us")

    def __init__(self) -> None:
        self._rate_us = self._tokens_us = 0

    def decide(self, limits: Limits, tokens: int, running: int, controllers: int, now_us: int) -> Verdict:
        """Whether one more may come in, and counts it then. running: of the tenant's requests here.
        controllers: at least 1.
        """
        rate = limits.rate.share(controllers) if limits.rate else None
        per_token = limits.tokens.share(controllers) if limits.tokens else None
        rate_cost = rate.cost_us(1) if rate else 0
        tokens_cost = per_token.cost_us(tokens) if per_token else 0
        rate_wait = wait_us(rate, self._rate_us, rate_cost, now_us) if rate else 0
        tokens_wait = wait_us(per_token, self._tokens_us, tokens_cost, now_us) if per_token else 0
        if rate_wait or tokens_wait:
            refused = Limit.RATE if rate_wait >= tokens_wait else Limit.TOKENS
            return Verdict(refused, max(rate_wait, tokens_wait) / 1e6, now_us)
        if limits.concurrency is not None and running >= max(1, limits.concurrency // controllers):
            return Verdict(Limit.CONCURRENCY, 0.0, now_us)
        if rate:
            self._rate_us = charged(rate, self._rate_us, rate_cost, now_us)
        if per_token:
            self._tokens_us = charged(per_token, self._tokens_us, tokens_cost, now_us)
        return Verdict(None, 0.0, now_us)
