"""What the engine tells of its requests, and of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from worker.engine.generation import CallPiece, FinishReason, MalformedCall, Phase, ReasoningEnd, Strike

if TYPE_CHECKING:  # which needs torch
    from worker.engine.sampling import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one phase, and the text and the calls of tools that they complete. Something is not empty.
    token_count: of tokens whose ids are not known.
    """

    phase: Phase
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    token_count: int = 0
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt's computation began. cached_tokens of it were found in a checkpoint. queue_s: waited, in
    seconds.
    """

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    queue_s: float


@dataclass(frozen=True, slots=True)
class Output:
    """What one step brought for one sample. strike: what has struck so far; for who resumes after this."""

    request_id: str
    sample: int
    pieces: tuple[Piece, ...]
    strike: Strike | None


@dataclass(frozen=True, slots=True)
class Timings:
    """Where a sample's time went, in seconds from receipt, prefill_s excepted: from the prompt's first
    computation to the first token. first_answer_s is None when there was no answer.
    """

    queue_s: float
    prefill_s: float
    first_token_s: float
    first_answer_s: float | None
    total_s: float
    decode_steps: int
    mean_batch_size: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A sample is complete. Its request is when all of its samples are. probes: begun; probe_tokens: fed to
    them and sampled, beside the sample's own. malformed: what was written as calls of tools that are none.
    """

    request_id: str
    sample: int
    reason: FinishReason
    reasoning_end: ReasoningEnd
    prompt_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    forced_tokens: int
    answer_tokens: int
    reopened: bool
    preemptions: int
    timings: Timings
    probes: int = 0
    skipped_probes: int = 0
    probe_tokens: int = 0
    malformed: tuple[MalformedCall, ...] = ()


class FailureKind(Enum):
    """Why a request failed after it was taken."""

    REQUEST = "request"
    """Something about this request."""
    DEVICE = "device"
    """The device failed; the engine takes nothing more."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A request failed; nothing more comes of it. `why` is for logs, not for callers. told: what its caller
    is told; None for no more than that.
    """

    request_id: str
    kind: FailureKind
    why: str
    told: Exception | None = None


Event = Started | Output | Finished | Failed


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the engine is. step_s: median of the last decode steps, None before the first."""

    running: int
    waiting: int
    backlog_tokens: int
    free_slots: int
    free_pages: int
    step_s: float | None
    tokens_per_s: float
