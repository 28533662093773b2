"""Under what terms a model may be used and passed on, as its directory tells."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FILE = "licence.json"
_CARD = "README.md"
_MAX_BYTES = 1 << 20
_MAX_CHARACTERS = 1024
_TEXTS = {"name", "url", "attribution"}


@dataclass(frozen=True, slots=True)
class Licence:
    """name: such as "Apache-2.0"; empty where the directory does not tell. url: where its text is.
    attribution: what must go along with copies of the model and with what is derived from it; empty where
    nothing is asked for.
    """

    name: str = ""
    url: str = ""
    attribution: str = ""


UNTOLD = Licence()
NVIDIA_OPEN_MODEL = Licence(
    "NVIDIA Open Model License",
    "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/",
    "Licensed by NVIDIA Corporation under the NVIDIA Open Model License",
)
"""Its section 3.1 asks for this sentence in a file named Notice."""
APACHE_2_0 = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")

_KNOWN = {"nvidia-open-model-license": NVIDIA_OPEN_MODEL, "apache-2.0": APACHE_2_0}
"""By the identifiers that model cards use."""


def read_licence(directory: Path) -> Licence:
    """The terms in `licence.json` (`name`, `url`, `attribution`: texts, the last two may be left out), or
    else those of the model card, README.md with `license` and `license_name` in its front matter, as model
    hubs have it.

    Raises ValueError for a `licence.json` that is not of this form, OSError for one that cannot be read.
    """
    file = directory / FILE
    if file.exists():
        return _of_file(file)
    return _of_card(directory / _CARD)


def _of_file(file: Path) -> Licence:
    try:
        content = json.loads(_beginning(file))
    except (ValueError, RecursionError):
        content = None
    if (
        isinstance(content, dict)
        and content.keys() <= _TEXTS
        and all(isinstance(text, str) and len(text) <= _MAX_CHARACTERS for text in content.values())
        and content.get("name")
    ):
        return Licence(**content)
    raise ValueError(f'{file} is not of the form {{"name": "…", "url": "…", "attribution": "…"}}')


def _of_card(card: Path) -> Licence:
    """What of the card cannot be understood is as if it were not there: it was written for people."""
    try:
        lines = _beginning(card).splitlines()
    except (OSError, ValueError):
        return UNTOLD
    said: dict[str, str] = {}
    if lines and lines[0].strip() == "---":
        for line in lines[1:]:
            if line.strip() == "---":
                break
            key, colon, value = line.partition(":")
            # A value on lines of its own begins with > or |.
            if colon and key.startswith("license") and not value.lstrip().startswith((">", "|")):
                said.setdefault(key.strip(), value.strip().strip("\"'")[:_MAX_CHARACTERS])
    name = said.get("license_name") or said.get("license", "")
    known = _KNOWN.get(name.lower())
    return known or Licence(name, said.get("license_link", ""))


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(_MAX_BYTES).decode()
