"""What of a request's output was passed on, so that another worker can go on where one was lost."""

from __future__ import annotations

from array import array

from curfew.v1 import generation_pb2, worker_pb2


class Passed:
    """The tokens that came, by runs of one phase, with the seed and the strike that belong to them.

    Its size is that of the output.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[generation_pb2.Phase.ValueType, array[int]]] = []
        self._strike: worker_pb2.ReasoningStrike | None = None
        self._seed: int | None = None

    @property
    def anything(self) -> bool:
        """Whether anything was."""
        return bool(self._runs)

    def start(self, started: worker_pb2.GenerationStarted) -> None:
        """A worker began; the seed of the first is in force."""
        if self._seed is None:
            self._seed = started.seed

    def add(self, response: worker_pb2.WorkerServiceGenerateResponse) -> None:
        """A delta is passed on."""
        delta = response.delta
        if not self._runs or self._runs[-1][0] != delta.phase:
            self._runs.append((delta.phase, array("I")))
        self._runs[-1][1].extend(delta.token_ids)
        self._strike = None
        if response.HasField("strike"):
            self._strike = response.strike

    def resume(self, request: worker_pb2.WorkerServiceGenerateRequest) -> None:
        """Has a request go on after what was passed on; as it was when there is nothing yet."""
        if not self._runs:
            return
        for phase, token_ids in self._runs:
            request.resume.add(phase=phase, token_ids=token_ids)
        if self._strike is not None:
            request.strike.CopyFrom(self._strike)
        if self._seed is not None:
            request.sampling.seed = self._seed
