from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cloister.cli.whole_directory import whole_directory
from cloister.errors import ConfigError, StorageError


def make(directory: Path) -> None:
    with whole_directory(directory) as draft:
        (draft / "key").write_text("secret")


def test_a_directory_appears_whole_and_for_its_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    make(directory)
    assert (directory / "key").read_text() == "secret"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert list(tmp_path.iterdir()) == [directory]


def test_a_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "used")
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "used")
    assert caught.value.code == "directory-in-use"


def test_its_name_is_on_the_disk_before_anything_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that a power cut takes away must not be in a plan already."""
    synced: list[tuple[int, list[str]]] = []
    sync = os.fsync

    def watch(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, os.listdir(handle)))
        sync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    make(tmp_path / "deep" / "new")
    assert synced == [
        ((tmp_path / "deep").stat().st_ino, ["new"]),
        (tmp_path.stat().st_ino, ["deep"]),
    ]


@pytest.mark.parametrize("fault", [OSError(28, "no space"), KeyboardInterrupt()])
def test_what_is_not_on_the_disk_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(_: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        make(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
