"""Takes a changed policy file into force while the controller serves."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from watchfiles import awatch

from controller.policy import Policy, PolicyError
from curfew.rpc.files import Signature, signature

log = logging.getLogger(__name__)

SETTLE_MS = 100
"""A file is read once nothing in its directory has changed for so long, so that what is written in several
steps is not read in between.
"""
LOOK_S = 5.0
"""How often a file is looked at when its directory reports nothing: it may be a link to elsewhere, or on a
file system whose changes are not reported.
"""


class Reloadable(Protocol):
    """A policy that can be read again."""

    @property
    def current(self) -> Policy | None:
        """The policy in force, or in use; None before any was fit for it."""

    async def reload(self) -> bool:
        """Reads again. Returns whether it is another one now; raises PolicyError, and then it is not."""


async def watch(file: Path, policy: Reloadable, look_s: float = LOOK_S, secrets: Path | None = None) -> None:
    """Reloads whenever the file changes, or one in the directory `secrets`, until cancelled.

    Its directory is watched and not the file, which a Kubernetes ConfigMap changes by renaming a link beside
    it (`..data`) and an editor by renaming another file over it. A file with errors is logged and changes
    nothing.
    """
    seen: list[Signature] = []
    directories = [file.parent] if secrets is None else [file.parent, secrets]
    async with aclosing(_wakeups(directories, look_s)) as wakeups:
        async for _ in wakeups:
            now = [signature(each) for each in (file, *_files(secrets))]
            if now == seen:
                continue
            # Taken before reading: a change in between is another one.
            seen = now
            await _reload(file, policy)


async def _reload(file: Path, policy: Reloadable) -> None:
    before = _version(policy)
    try:
        changed = await policy.reload()
    except PolicyError as error:
        log.error("%s is refused, policy %s stays in force:\n%s", file, before, error)
        return
    except Exception:
        # Whatever it is, the next change must find somebody watching.
        log.exception("%s could not be read, policy %s stays in force", file, before)
        return
    if changed and policy.current is not None:
        log.info("%s: policy %s is in force, instead of %s", file, _version(policy), before)
        log_doubts(file, policy.current)


def _version(policy: Reloadable) -> str:
    return "none" if policy.current is None else policy.current.version


def log_doubts(file: Path, policy: Policy) -> None:
    """Logs what is likely not meant in a policy that comes into force."""
    for warning in policy.warnings:
        log.warning("%s:%d:%d: %s", file, warning.mark.line, warning.mark.column, warning.message)
    for name in policy.keyless:
        variable = "CURFEW_KEY_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
        log.warning("tenant %s has no API key, so nobody can call as it; set %s", name, variable)


async def _wakeups(directories: list[Path], look_s: float) -> AsyncGenerator[None, None]:
    """Now, when something in one of the directories has changed, and from time to time."""
    yield
    told = False
    while True:
        changes = awatch(
            *directories,
            watch_filter=None,
            recursive=False,
            step=SETTLE_MS,
            rust_timeout=round(look_s * 1000),
            yield_on_timeout=True,
        )
        try:
            async for _ in changes:
                yield
        except (OSError, RuntimeError) as error:  # it is gone, or the system has no more watches to give
            if not told:
                names = ", ".join(map(str, directories))
                log.warning("%s cannot be watched (%s), so it is looked at every %g s", names, error, look_s)
                told = True
        finally:
            await changes.aclose()
        await asyncio.sleep(look_s)
        yield


def _files(directory: Path | None) -> list[Path]:
    """The files of a directory, by name; none when it cannot be read."""
    try:
        return [] if directory is None else sorted(directory.iterdir())
    except OSError:
        return []
