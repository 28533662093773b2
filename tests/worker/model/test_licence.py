"""What a model's directory tells of its terms."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.model.licence import APACHE_2_0, NVIDIA_OPEN_MODEL, Licence, read_licence

DEMO_MODEL = Path(__file__).parents[3] / "demo" / "model"

CARD = """\
---
license: other
license_name: nvidia-open-model-license
license_link: >-
  https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/
pipeline_tag: text-generation
---

# A model
"""


def test_the_demo_model_is_apache_licensed() -> None:
    assert read_licence(DEMO_MODEL) == APACHE_2_0


def test_the_card_of_a_model_of_the_family_names_its_terms_and_what_they_ask(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    licence = read_licence(tmp_path)
    assert licence == NVIDIA_OPEN_MODEL
    assert licence.attribution == "Licensed by NVIDIA Corporation under the NVIDIA Open Model License"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", APACHE_2_0),
        ('---\nlicense: "mit"\nlicense_link: LICENSE\n---\n', Licence("mit", "LICENSE")),
        ("---\nlicense: other\nlicense_link: >-\n  https://x\n---\n", Licence("other")),
        ("# No front matter\nlicense: mit\n", Licence()),
        ("---\n---\nlicense: mit\n", Licence()),
        ("", Licence()),
    ],
)
def test_a_card_tells_in_its_front_matter(tmp_path: Path, card: str, licence: Licence) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == licence


def test_a_directory_may_tell_nothing(tmp_path: Path) -> None:
    assert read_licence(tmp_path) == Licence()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_licence(tmp_path) == Licence()


def test_a_file_of_ones_own_comes_first(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "licence.json").write_text('{"name": "Ours", "attribution": "Made by us"}')
    assert read_licence(tmp_path) == Licence("Ours", "", "Made by us")


@pytest.mark.parametrize(
    "content",
    ["", "[]", '"x"', "{}", '{"name": 1}', '{"name": "x", "text": "y"}', '{"url": "x"}', "[" * 10**5],
)
def test_a_file_of_another_form_is_told_at_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / "licence.json").write_text(content)
    with pytest.raises(ValueError, match=r"licence.json is not of the form"):
        read_licence(tmp_path)
