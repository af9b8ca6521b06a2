from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from cloister.errors import PlatformError
from cloister.federation.allocator import settle_allocator

# Writes how much of 64 freed blocks of a MiB the process still has, in blocks.
_PROGRAM = """
import gc, pathlib
from cloister.federation.allocator import settle_allocator
settle_allocator()
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096
blocks = [bytes(2**20) for _ in range(64)]
before = resident()
del blocks
gc.collect()
print((before - resident()) // 2**20)
"""


def test_a_process_keeps_the_heap_that_it_has_freed() -> None:
    """In a process of its own: it cannot be taken back."""
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4


class _Library:
    """A C library, as far as it matters."""


def test_where_the_library_has_no_such_settings_there_is_nothing_to_settle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: _Library())
    settle_allocator()


def test_a_setting_that_is_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = _Library()
    refusing.mallopt = lambda *_: 0  # type: ignore[attr-defined]
    monkeypatch.setattr(ctypes, "CDLL", lambda _: refusing)
    with pytest.raises(PlatformError) as caught:
        settle_allocator()
    assert caught.value.code == "allocator-refused"
