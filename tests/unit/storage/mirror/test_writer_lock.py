from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from cloister.errors import StorageError
from cloister.storage.mirror.writer_lock import POLL_SECONDS, hold

HOLDER = """
import sys
from pathlib import Path
from cloister.storage.mirror.writer_lock import hold
with hold(Path(sys.argv[1]), patience_seconds=0):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def no_waiting(_: float) -> None:
    raise AssertionError("nobody has the lock")


def test_a_free_lock_is_held_at_once_and_its_file_stays(path: Path) -> None:
    for _ in range(2):
        with hold(path, patience_seconds=10, sleep=no_waiting):
            assert path.stat().st_mode & 0o777 == 0o600
        assert path.exists()


def test_without_patience_a_held_lock_is_refused(path: Path) -> None:
    with hold(path, patience_seconds=0):
        with pytest.raises(StorageError) as caught, hold(path, patience_seconds=0):
            pass
        assert caught.value.code == "mirror-in-use"
        assert caught.value.remedy
    with hold(path, patience_seconds=0):
        pass


def test_patience_ends(path: Path) -> None:
    waited: list[float] = []
    with (
        hold(path, patience_seconds=0),
        pytest.raises(StorageError) as caught,
        hold(path, patience_seconds=1, sleep=waited.append),
    ):
        pass
    assert caught.value.code == "mirror-in-use"
    assert waited == [POLL_SECONDS] * 20


def test_who_gives_it_up_meanwhile_is_waited_for(path: Path) -> None:
    with ExitStack() as other:
        other.enter_context(hold(path, patience_seconds=0))
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                other.close()

        with hold(path, patience_seconds=1, sleep=sleep):
            assert len(waited) == 3


def test_a_killed_process_gives_it_back(path: Path) -> None:
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(StorageError) as caught, hold(path, patience_seconds=0):
            pass
        assert caught.value.code == "mirror-in-use"
        process.send_signal(signal.SIGKILL)
        with hold(path, patience_seconds=30):
            pass


@pytest.mark.parametrize("kind", ["directory", "link", "nowhere"])
def test_what_is_no_lock_file_is_refused(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path = path.parent / "nowhere" / ".lock"
    with pytest.raises(StorageError) as caught, hold(path, patience_seconds=5):
        pass
    assert caught.value.code == "mirror-unwritable"


def test_where_there_are_no_locks_it_says_so_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(_: int, __: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), hold(path, patience_seconds=0):
        pass
    assert "no file locks" in caplog.text


def test_a_lock_that_fails_is_told_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: int, __: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(StorageError) as caught,
        hold(path, patience_seconds=9, sleep=no_waiting),
    ):
        pass
    assert caught.value.code == "mirror-unwritable"
