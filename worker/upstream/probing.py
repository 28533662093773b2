"""Finds out what a server is, what model it serves, and how long a sequence may be."""

from __future__ import annotations

from dataclasses import dataclass

from curfew.dialects import DIALECTS, PLAIN, Dialect, Json
from worker.upstream.client import Upstream, json_of

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp", "curfew": "curfew"}


@dataclass(frozen=True, slots=True)
class Found:
    """A server. model: the first that it lists; None when it lists none. max_sequence_tokens: None when it
    does not tell.
    """

    dialect: Dialect
    model: str | None
    max_sequence_tokens: int | None


async def probe(server: Upstream, told: str | None, model: str | None) -> Found:
    """told: the dialect's name, or None to find out. model: the one that is meant, or None for the first."""
    models = await server.models()
    meant = next((entry for entry in models if model is None or entry.get("id") == model), {})
    listed = meant.get("id")
    return Found(
        DIALECTS[told] if told is not None else await _dialect(server, models),
        model or (listed if isinstance(listed, str) else None),
        await _length(server, meant),
    )


async def _dialect(server: Upstream, models: list[Json]) -> Dialect:
    owner = models[0].get("owned_by") if models else None
    # NIM runs other engines inside and has a health path of its own.
    if json_of(await server.ask(f"{server.root}/v1/health/ready")):
        return DIALECTS["nim"]
    if isinstance(owner, str) and owner in _OWNERS:
        return DIALECTS[_OWNERS[owner]]
    if "default_generation_settings" in json_of(await server.ask(f"{server.root}/props")):
        return DIALECTS["llama.cpp"]
    alive = await server.ask(f"{server.root}/health/liveliness")
    if alive is not None and alive.is_success and "alive" in alive.text:
        return DIALECTS["litellm"]
    return PLAIN


async def _length(server: Upstream, model: Json) -> int | None:
    length = model.get("max_model_len")  # vLLM, SGLang
    if not isinstance(length, int):
        settings = json_of(await server.ask(f"{server.root}/props")).get("default_generation_settings")
        length = settings.get("n_ctx") if isinstance(settings, dict) else None  # llama.cpp
    return length if isinstance(length, int) and length > 0 else None
