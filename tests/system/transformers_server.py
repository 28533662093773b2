"""`transformers serve` with the demo model: an OpenAI-compatible server that knows nothing of budgets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.system.conftest import MODEL

_RUNNING = re.compile(rb"running on (http://\S+)")
_TEMPLATE = """\
<SPECIAL_10>System
{{ messages[0].content | trim if messages[0].role == 'system' else '' }}
{% for message in messages if message.role != 'system' %}<SPECIAL_11>{{ message.role | capitalize }}
{{ (message.content.split('</think>') | last) | trim }}
{% if message.role == 'assistant' %}<SPECIAL_12>
{% endif %}{% endfor %}<SPECIAL_11>Assistant
<think>{{ '</think>' if enable_thinking is defined and not enable_thinking else '\\n' }}"""


def write_model(directory: Path) -> Path:
    """The demo model as transformers wants it: with a chat template, and with the names of its tokens."""
    directory.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (directory / name).symlink_to(MODEL / name)
    names = {"eos_token": "<SPECIAL_12>", "pad_token": "<SPECIAL_0>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "chat_template.jinja").write_text(_TEMPLATE)
    return directory


@asynccontextmanager
async def transformers_serving(directory: Path) -> AsyncIterator[tuple[str, str]]:
    """Its URL, and the model's name there."""
    model = write_model(directory / "model")
    (directory / "hub").mkdir()
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "transformers"),
        "serve",
        str(model),
        *("--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--dtype", "float32"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=PIPE,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(directory / "hub"),
            "OMP_NUM_THREADS": "1",
        },
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(120):
            while not (match := _RUNNING.search(line := await process.stderr.readline())):
                assert line, "transformers serve ended"
        # What it says further must not fill the pipe.
        drain = asyncio.create_task(process.stderr.read())
        yield f"{match[1].decode()}/v1", str(model)
        drain.cancel()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
