from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import StorageError
from cloister.storage.mirror.medium_file import MediumFile
from cloister.storage.mirror.region import PAGE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.mirror"


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A disk with room for no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def published(path: Path, *, size: int = 2 * PAGE) -> None:
    file = MediumFile.create(path, size=size)
    file.publish()
    file.close()


def refused_to_open(path: Path) -> str:
    with pytest.raises(StorageError) as caught:
        MediumFile.open(path, room=1)
    assert caught.value.remedy
    return caught.value.code


def refused_to_create(path: Path) -> StorageError:
    before = sorted(path.parent.iterdir())
    with pytest.raises(StorageError) as caught:
        MediumFile.create(path, size=10 * PAGE)
    assert sorted(path.parent.iterdir()) == before
    return caught.value


def test_a_new_file_is_zeros_with_room_and_its_owners_alone(path: Path) -> None:
    file = MediumFile.create(path, size=2 * PAGE + 1)
    assert file.size == 3 * PAGE
    file.publish()
    found = path.stat()
    assert (found.st_size, found.st_mode & 0o777) == (3 * PAGE, 0o600)
    assert found.st_blocks * 512 >= 3 * PAGE
    assert path.read_bytes() == bytes(3 * PAGE)
    file.close()


def test_a_file_has_its_name_once_it_is_published(path: Path) -> None:
    file = MediumFile.create(path, size=1)
    assert not path.exists()
    file.publish()
    assert list(path.parent.iterdir()) == [path]
    file.publish()
    file.close()
    file.close()
    assert list(path.parent.iterdir()) == [path]


def is_directory(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_the_name_of_a_file_is_durable_before_it_is_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it may have been killed between its naming and the fsync of that."""
    fsync, synced = os.fsync, 0

    def watched(descriptor: int) -> None:
        nonlocal synced
        if is_directory(descriptor):
            assert path.exists()
            assert os.fstat(descriptor).st_ino == path.parent.stat().st_ino
            synced += 1
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    published(path)
    assert synced == 1
    MediumFile.open(path, room=1).close()
    assert synced == 2


def test_a_name_that_cannot_be_made_durable_is_not_gone_on_from(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if is_directory(descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    file = MediumFile.create(path, size=PAGE)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(StorageError) as caught:
            file.publish()
        assert caught.value.code == "mirror-unwritable"
        file.close()
        assert refused_to_open(path) == "mirror-unwritable"
    MediumFile.open(path, room=1).close()


def test_a_file_that_is_closed_before_is_gone(path: Path) -> None:
    MediumFile.create(path, size=1).close()
    assert list(path.parent.iterdir()) == []


def test_what_a_dead_process_left_is_replaced(path: Path) -> None:
    path.with_name(".x.mirror.new").write_bytes(b"half")
    published(path)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == bytes(2 * PAGE)


def test_one_process_has_a_file_also_before_it_has_its_name(path: Path) -> None:
    file = MediumFile.create(path, size=1)
    assert refused_to_create(path).code == "mirror-in-use"
    file.publish()
    assert refused_to_open(path) == "mirror-in-use"
    file.close()
    MediumFile.open(path, room=1).close()


def test_what_is_there_is_never_replaced(path: Path) -> None:
    published(path)
    assert refused_to_create(path).code == "mirror-exists"
    path.unlink()
    path.symlink_to("nowhere")
    assert refused_to_create(path).code == "mirror-exists"


def test_a_full_medium_says_how_much_is_needed_and_keeps_nothing(path: Path) -> None:
    with files_up_to(3 * PAGE):
        error = refused_to_create(path)
    assert error.code == "mirror-full"
    assert str(10 * PAGE) in error.expected


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "mirror-full"),
        (errno.EDQUOT, "mirror-full"),
        (errno.EIO, "mirror-unwritable"),
        (errno.EROFS, "mirror-unwritable"),
    ],
)
def test_a_medium_that_fails_while_a_file_is_made_keeps_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    assert refused_to_create(path).code == code


def test_holes_are_filled_when_a_file_is_opened(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 * PAGE)
    assert path.stat().st_blocks == 0
    MediumFile.open(path, room=100 * PAGE).close()
    assert path.stat().st_blocks * 512 >= 100 * PAGE


def test_a_copy_with_holes_on_a_full_medium_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    published(path)
    monkeypatch.setattr(os, "posix_fallocate", fail)
    assert refused_to_open(path) == "mirror-full"


@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 1])
def test_a_file_that_was_cut_off_is_damaged(path: Path, size: int) -> None:
    path.write_bytes(bytes(size))
    assert refused_to_open(path) == "mirror-damaged"


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("absent", "mirror-missing"),
        ("in no directory", "mirror-missing"),
        ("below a file", "mirror-missing"),
        ("directory", "mirror-unwritable"),
        ("link", "mirror-unwritable"),
        ("pipe", "mirror-unwritable"),
    ],
)
def test_what_is_no_file_is_not_opened(path: Path, kind: str, code: str) -> None:
    if kind == "in no directory":
        path = path.parent / "nowhere" / "x.mirror"
    elif kind == "below a file":
        path.touch()
        path /= "x.mirror"
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        published(path.with_name("real"))
        path.symlink_to("real")
    elif kind == "pipe":
        os.mkfifo(path)
    assert refused_to_open(path) == code


@pytest.mark.parametrize("kind", ["absent", "file", "link"])
def test_without_its_directory_or_beside_odd_things_none_is_made(
    path: Path, kind: str
) -> None:
    if kind == "absent":
        path = path.parent / "nowhere" / "x.mirror"
    elif kind == "file":
        path.touch()
        path /= "x.mirror"
    else:
        path.with_name(".x.mirror.new").symlink_to("elsewhere")
    with pytest.raises(StorageError) as caught:
        MediumFile.create(path, size=1)
    assert caught.value.code == "mirror-unwritable"


def test_a_name_that_cannot_be_given_leaves_the_file_unnamed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    file = MediumFile.create(path, size=1)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "rename", fail)
        with pytest.raises(StorageError) as caught:
            file.publish()
    assert caught.value.code == "mirror-unwritable"
    file.close()
    assert list(path.parent.iterdir()) == []


def test_a_file_of_holes_does_not_fill_the_medium(path: Path) -> None:
    published(path)
    os.truncate(path, 2**40)
    MediumFile.open(path, room=10 * PAGE).close()
    assert path.stat().st_blocks * 512 <= 11 * PAGE
