"""Freed memory stays with the process."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from worker.model.heap import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is meant")
def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    assert keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.empty(1 << 20).fill_(1.0) for _ in range(4)]
        assert held
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    # 16 MiB are 4,096 pages.
    assert min(faults() for _ in range(5)) < 100
