"""Every way in which a policy file can be wrong, one file each; a file begins with its errors."""

from pathlib import Path

import pytest

from controller.policy import PolicyError, parse_policy

BAD = Path(__file__).parent / "bad"
SECRETS = Path(__file__).parent / "secrets"


@pytest.mark.parametrize("name", sorted(path.stem for path in BAD.glob("*.yaml")))
def test_a_bad_file_gives_exactly_its_errors(name: str) -> None:
    text = (BAD / f"{name}.yaml").read_text()
    expected = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    with pytest.raises(PolicyError) as caught:
        parse_policy(text, "policy.yaml", {"SET": "a key"}, SECRETS)
    assert str(caught.value).splitlines() == [f"policy.yaml:{line}" for line in expected]
