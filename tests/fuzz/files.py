"""Damaged files of every kind that the services read: each loads, or is refused in lines that name it."""

from __future__ import annotations

import copy
import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import jwt.algorithms
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from controller.admission.key_sets import FileKeys
from controller.policy import PolicyError, load_policy
from controller.simulation.speed import PRESETS, EngineDetails, SpeedError, find_speed, speed_text
from controller.simulation.trace import TraceError, read_trace
from worker.engine.build import load_model
from worker.model.chat import Chat
from worker.model.checkpoint import CheckpointError
from worker.model.config import ModelConfig, UnsupportedModelError

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "model"
TRACE = ROOT / "benchmarks" / "traces" / "reasoning_morning.csv"

NAMES = (
    "policy.yaml",
    "trace.csv",
    "trace.csv.gz",
    "speed.json",
    "jwks.json",
    "config.json",
    "tokenizer.json",
    "model.safetensors",
)
"""Of all kinds."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_HOSTILE_JSON: tuple[Json, ...] = (
    None, True, "", "\0", "😀", "a" * 200, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, float("inf"), float("nan"),
    [], {}, [[[[]]]], {"": {}}, ["x"] * 50,
)  # fmt: skip
_PIECES = (
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\t", b",", b'"', b":", b"{", b"[", b"}", b"]", b"-", b"- ",
    b"&a *a",
    b"9" * 400, b"1e999", b"{" * 5000, b"[" * 5000, b"\xed\xa0\x80", b"!!python/object:os.system x", b"=1+1",
    (2**64 - 1).to_bytes(8, "little"), (2**63).to_bytes(8, "little"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. name: what it is called where it is read from. load: reads it. refusals: what `load`
    may raise; each of the message's lines begins with the path or names it.
    """

    name: str
    content: bytes
    load: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    is_json: bool = False


def kinds(directory: Path) -> Iterator[Kind]:
    """All of them, by `NAMES`. Model files lie in `directory`, beside the demo model's other ones."""
    policy = (ROOT / "docs" / "policies" / "support-chat.yaml").read_bytes()
    yield Kind("policy.yaml", policy, lambda path: load_policy(path, {}, directory), (PolicyError,))
    rows = b"".join(TRACE.read_bytes().splitlines(keepends=True)[:20])
    yield Kind("trace.csv", rows, read_trace, (TraceError,))
    yield Kind("trace.csv.gz", gzip.compress(rows, mtime=0), read_trace, (TraceError,))
    speed = speed_text(next(iter(PRESETS.values())).description(), EngineDetails()).encode()
    yield Kind("speed.json", speed, lambda path: find_speed(str(path)), (SpeedError,), is_json=True)
    yield Kind("jwks.json", _key_set(), FileKeys, (ValueError,), is_json=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(MODEL / name, directory / name)
    unsupported = (UnsupportedModelError, CheckpointError)
    for name, load in (
        ("config.json", lambda path: load_demo(path.parent)),
        ("tokenizer.json", lambda path: Chat.load(path.parent, ModelConfig.load(MODEL).end_token_ids)),
    ):
        yield Kind(name, (MODEL / name).read_bytes(), load, unsupported, is_json=True)
    header = _of_header((MODEL / "model.safetensors").read_bytes())
    yield Kind("model.safetensors", header, lambda path: load_demo(path.parent), unsupported)


def _key_set() -> bytes:
    key = jwt.algorithms.ECAlgorithm.to_jwk(
        ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True
    )
    return json.dumps({"keys": [{**key, "kid": "one", "alg": "ES256", "use": "sig"}]}).encode()


def load_demo(directory: Path) -> object:
    """Loads a model directory as a worker does."""
    return load_model(directory, device=torch.device("cpu"), dtype=torch.float32, kernels="torch")


def _of_header(weights: bytes) -> bytes:
    """The length and header of a safetensors file, and little of what follows."""
    return weights[: 8 + int.from_bytes(weights[:8], "little") + 64]


@st.composite
def damaged(draw: DrawFn, content: bytes) -> bytes:
    """Bytes changed, lost, put in, or cut off."""
    raw = content
    for _ in range(draw(st.integers(1, 3))):
        at, gone = draw(st.integers(0, len(raw))), draw(st.sampled_from((0, 1, 8, 100)))
        raw = raw[:at] + draw(st.sampled_from(_PIECES) | st.binary(max_size=4)) + raw[at + gone :]
    return raw[: draw(st.integers(0, len(raw)))] if draw(st.integers(0, 4)) == 4 else raw


@st.composite
def wrong_value(draw: DrawFn, content: bytes) -> bytes:
    """JSON in which one value is another, or one key is missing."""
    document: Json = json.loads(content)
    at: Json = document
    while True:
        keys: list[str] | list[int] = list(at) if isinstance(at, dict) else list(range(len(_list(at))))
        if not keys:
            return json.dumps(document).encode()
        key = draw(st.sampled_from(keys[:2000]))
        inner = at[key]  # type: ignore[index, call-overload]
        if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
            at = inner
            continue
        if isinstance(at, dict) and draw(st.integers(0, 4)) == 4:
            del at[str(key)]
        else:
            at[key] = copy.copy(draw(st.sampled_from(_HOSTILE_JSON)))  # type: ignore[index, call-overload]
        return json.dumps(document).encode()


def _list(value: Json) -> list[Json]:
    assert isinstance(value, list)
    return value


def attack(kind: Kind, directory: Path, *, examples: int, randomness: int | None = None) -> None:
    """Loads damaged files of a kind from `directory`. Raises AssertionError, or what the loader raised, for
    the least one that is neither loaded nor refused as it should be. randomness: as of messages.attack.
    """
    path = directory / kind.name
    contents: SearchStrategy[bytes] = damaged(kind.content)
    if kind.is_json:
        contents |= wrong_value(kind.content)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=randomness is None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def loads_or_is_refused(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            kind.load(path)
        except kind.refusals as error:
            for line in str(error).splitlines() or [""]:
                assert str(path.parent) in line, line

    if randomness is not None:
        loads_or_is_refused = seed(randomness)(loads_or_is_refused)
    try:
        loads_or_is_refused()
    finally:
        path.write_bytes(
            kind.content if path.name != "model.safetensors" else (MODEL / path.name).read_bytes()
        )
