"""API keys in the files of a directory: read with every load, exchanged while serving, never shown."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from controller.policy import LivePolicy, Policy, PolicyError, parse_policy

TEXT = """\
apiVersion: curfew/v1
tenants:
  - name: support
    key: {file: support-key}
  - name: analyst
    key: {file: analyst-key}
"""


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "support-key").write_text("old-key\n")
    (tmp_path / "analyst-key").write_text("sha256:" + hashlib.sha256(b"analysts").hexdigest() + "\n")
    return tmp_path


def load(secrets: Path | None) -> Policy:
    return parse_policy(TEXT, "policy.yaml", {}, secrets)


def callers(policy: Policy, *keys: str) -> list[str | None]:
    return [tenant.name if (tenant := policy.tenant_of(key)) else None for key in keys]


def test_a_file_holds_a_key_or_its_digest(secrets: Path) -> None:
    assert callers(load(secrets), "old-key", "analysts", "other") == ["support", "analyst", None]


async def test_keys_are_exchanged_without_a_moment_that_refuses_a_caller(secrets: Path) -> None:
    live = LivePolicy(lambda: load(secrets))
    file = secrets / "support-key"
    assert await live.reload() is False
    file.write_text("old-key\r\nnew-key\r\n")
    assert await live.reload() is True
    assert callers(live.current, "old-key", "new-key") == ["support", "support"]
    file.write_text("new-key")
    assert await live.reload() is True
    assert callers(live.current, "old-key", "new-key") == [None, "support"]


async def test_keys_that_change_hands_are_a_change(secrets: Path) -> None:
    live = LivePolicy(lambda: load(secrets))
    (secrets / "support-key").write_text("analysts")
    (secrets / "analyst-key").write_text("old-key")
    assert await live.reload() is True
    assert callers(live.current, "old-key", "analysts") == ["analyst", "support"]


async def test_a_bad_exchange_leaves_the_old_keys_in_force(secrets: Path) -> None:
    live = LivePolicy(lambda: load(secrets))
    (secrets / "support-key").write_text("a new key\n")
    with pytest.raises(PolicyError) as caught:
        await live.reload()
    assert live.rejected is caught.value
    assert callers(live.current, "old-key") == ["support"]


def test_no_message_and_no_policy_shows_a_key(secrets: Path) -> None:
    assert "old-key" not in repr(load(secrets))
    for content in ("sesame open\n", "sha256:sesame\n", "sesame\nsesame\n"):
        (secrets / "support-key").write_text(content)
        with pytest.raises(PolicyError) as caught:
            load(secrets)
        assert "sesame" not in str(caught.value)


def test_a_file_without_end_is_refused(secrets: Path) -> None:
    (secrets / "support-key").write_bytes(b"k" * (2**20 + 1))
    with pytest.raises(PolicyError, match="secret support-key is larger than 1 MiB"):
        load(secrets)


def test_without_a_directory_there_are_no_files_to_read() -> None:
    with pytest.raises(PolicyError) as caught:
        load(None)
    assert str(caught.value).splitlines() == [
        "policy.yaml:4:17: tenants[0].key.file: there is no secrets directory; give it with --secrets",
        "policy.yaml:6:17: tenants[1].key.file: there is no secrets directory; give it with --secrets",
    ]


def test_where_keys_are_not_looked_for_files_are_not_either() -> None:
    policy = parse_policy(TEXT, "policy.yaml", None)
    assert (dict(policy.keys), policy.keyless) == ({}, ())
