"""Degenerate loops: reasoning that writes the same few tokens over and over."""

from dataclasses import dataclass

# Tokens between two looks. Detection comes at most this much later; the cost per token is divided by it.
_STRIDE = 16


@dataclass(frozen=True, slots=True)
class LoopRule:
    """A loop: the last `max(min_tokens, min_repeats * p)` tokens have a period p <= `max_period`.

    The defaults let pass what repeats for a reason (a ruled line, a column of similar sums, a formula tried a
    few times: not exactly periodic, or shorter) and end a loop of 192 (p <= 24) to 512 (p = 64) tokens.
    Raises ValueError for a period below 1, fewer than 2 repeats, or less than 1 token.
    """

    max_period: int = 64
    min_repeats: int = 8
    min_tokens: int = 192

    def __post_init__(self) -> None:
        if self.max_period < 1 or self.min_repeats < 2 or self.min_tokens < 1:
            raise ValueError(f"a loop needs max_period >= 1, min_repeats >= 2 and min_tokens >= 1: {self}")

    def length(self, period: int) -> int:
        """How many tokens must have this period."""
        return max(self.min_tokens, self.min_repeats * period)


DEFAULT_LOOP_RULE = LoopRule()


class LoopDetector:
    """Looks at the tail of a token stream, every 16th token, for a loop."""

    __slots__ = ("_keep", "_rule", "_tail")

    def __init__(self, rule: LoopRule) -> None:
        self._rule = rule
        self._tail: list[int] = []
        # A whole number of strides, so that trimming does not move the looks.
        self._keep = -(-rule.length(rule.max_period) // _STRIDE) * _STRIDE

    def observe(self, token_id: int) -> bool:
        """Adds a token; whether the stream is looping now, which may be seen up to 15 tokens late."""
        tail = self._tail
        tail.append(token_id)
        if len(tail) % _STRIDE:
            return False
        if len(tail) > 4 * self._keep:
            del tail[: -self._keep]
        last = tail[-1]
        for period in range(1, min(self._rule.max_period, len(tail) // 2) + 1):
            # Cheapest test first: one token, one period, everything.
            if tail[-1 - period] == last and tail[-period:] == tail[-2 * period : -period]:
                length = self._rule.length(period)
                if length <= len(tail) and tail[period - length :] == tail[-length:-period]:
                    return True
        return False
