from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloister.storage.whole_file import whole_file, write_whole


def test_a_file_is_written_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"before")
    path.chmod(0o644)
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fault", [OSError(28, "no space"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"before")

    def fail(_: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(fault)):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_written_piece_by_piece_has_its_name_when_it_is_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / "data"
    with whole_file(path) as file:
        file.write(b"one ")
        file.flush()
        assert not path.exists()
        (part,) = tmp_path.iterdir()
        assert part.stat().st_mode & 0o777 == 0o600
        file.write(b"two")
    assert path.read_bytes() == b"one two"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path, fault: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"half")
        raise fault


@pytest.mark.parametrize("fault", [ValueError(), KeyboardInterrupt(), SystemExit()])
def test_a_block_that_raises_leaves_nothing(
    tmp_path: Path, fault: BaseException
) -> None:
    with pytest.raises(type(fault)):
        write_half(tmp_path / "data", fault)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from cloister.storage.whole_file import whole_file
with whole_file(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)  # noqa: S603 - our own program
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"before"
