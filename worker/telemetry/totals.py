"""What a worker has done since it started."""

from __future__ import annotations

from collections.abc import Iterator

from curfew.rpc.durations import seconds
from curfew.telemetry import worker_metrics as metrics
from curfew.telemetry.metric import Counts, Histograms, Reading
from curfew.v1 import generation_pb2, worker_pb2


class Totals:
    """Counts requests and samples, each once, at its end."""

    def __init__(self) -> None:
        self._requests = Counts(metrics.REQUESTS)
        self._tokens = Counts(metrics.TOKENS)
        self._ends = Counts(metrics.REASONING_ENDS)
        self._probes = Counts(metrics.PROBES)
        self._queue = Histograms(metrics.QUEUE)
        self._prefill = Histograms(metrics.PREFILL)

    def ended(self, outcome: str) -> None:
        """A request is over: completed, refused, failed or cancelled."""
        self._requests.add(1, outcome)

    def completed(self, sample: worker_pb2.WorkerCompletion, trace_id: str) -> None:
        """A sample is complete. trace_id: empty without a trace."""
        usage, timings = sample.usage, sample.timings
        for kind, tokens in (
            ("prompt", usage.prompt_tokens),
            ("cached_prompt", usage.cached_prompt_tokens),
            ("reasoning", usage.reasoning_tokens),
            ("forced", usage.forced_tokens),
            ("answer", usage.answer_tokens),
            ("probe", usage.probe_tokens),
        ):
            self._tokens.add(tokens, kind)
        self._ends.add(1, reasoning_end(sample))
        self._probes.add(sample.probes, "begun")
        self._probes.add(sample.skipped_probes, "skipped")
        self._queue.observe((), seconds(timings.queue), trace_id)
        self._prefill.observe((), seconds(timings.prefill), trace_id)

    def read(self) -> Iterator[Reading]:
        """All of them."""
        for kept in (self._requests, self._tokens, self._ends, self._probes, self._queue, self._prefill):
            yield from kept.read()


def reasoning_end(sample: worker_pb2.WorkerCompletion) -> str:
    """Why its reasoning ended, such as "budget"."""
    name = generation_pb2.ReasoningEnd.Name(sample.reasoning_end)
    return name.removeprefix("REASONING_END_").lower()
