"""What a request has before it at a worker. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """A request's size in tokens, as far as it is known or guessed."""

    prompt_tokens: float
    output_tokens: float


class Outlook(NamedTuple):
    """What a request that is sent to a worker now has before it.

    full: it would wait for a slot. requests: that are there. wait_s: until its prefill begins. step_s: of a
    decode step with it. caution: by which its times are taken to be longer, at least 1.
    """

    full: bool
    requests: int
    wait_s: float
    prefill_s_per_token: float
    step_s: float
    caution: float

    def finish_s(self, size: Size, cached_tokens: int = 0) -> float:
        """Seconds until a request has ended. cached_tokens: of its prompt, which need no prefill."""
        prefill_s = max(0.0, size.prompt_tokens - cached_tokens) * self.prefill_s_per_token
        return self.caution * (self.wait_s + prefill_s + (1 + size.output_tokens) * self.step_s)
