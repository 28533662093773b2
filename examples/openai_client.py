"""Asks with OpenAI's own client, within a deadline: python -m examples.openai_client ADDRESS KEY

ADDRESS is that of the HTTP door, as `curfew serve --http 127.0.0.1:7280` opens it.
"""

from __future__ import annotations

import sys
from typing import Any

from openai import OpenAI


def main(address: str, key: str) -> None:
    """Streams the reasoning and the answer, then tells what was promised and kept."""
    with OpenAI(base_url=f"http://{address}/v1", api_key=key) as client:
        chunks = client.chat.completions.create(
            model=client.models.list().data[0].id,
            messages=[{"role": "user", "content": "What is 12 + 37 + 45?"}],
            reasoning_effort="high",
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"curfew": {"deadline_ms": 2000}},
        )
        for chunk in chunks:
            for choice in chunk.choices:
                beside: Any = choice.delta.model_extra
                print(beside.get("reasoning_content") or choice.delta.content or "", end="", flush=True)
            account: Any = (chunk.model_extra or {}).get("curfew", {})
            if "kept" in account:
                kept = "kept" if account["kept"] else "missed"
                print(f"\nafter {account['latency_ms']:.0f} ms, {kept}")
            if chunk.usage and chunk.usage.completion_tokens_details:
                print(f"{chunk.usage.completion_tokens_details.reasoning_tokens} reasoning tokens")


if __name__ == "__main__":
    main(*sys.argv[1:])
