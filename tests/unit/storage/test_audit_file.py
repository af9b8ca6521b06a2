from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.support.appending_process import KEY
from tests.support.audit_signing import (
    PartySigner,
    log_of,
    made_links,
    verified_links,
)

from cloister.errors import CloisterError, StorageError
from cloister.storage.audit_chain import FIRST, Link
from cloister.storage.audit_file import AuditFile

ROOT = Path(__file__).parents[3]
SIGNER = PartySigner()
ENTRIES = [b'{"kind":"round","round":%d}' % number for number in range(4)]
LINKS = made_links(ENTRIES, signer=SIGNER)
LOG = log_of(LINKS)
LAST_LINE = LOG.rindex(b"\n", 0, -1) + 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "audit.jsonl"


def opened(path: Path, content: bytes) -> AuditFile:
    path.write_bytes(content)
    return AuditFile.open(path)


def refused(path: Path, content: bytes) -> StorageError:
    with pytest.raises(StorageError) as caught:
        opened(path, content)
    # Whatever it is, it is somebody's, and may show what happened.
    assert path.read_bytes() == content
    return caught.value


def append(log: AuditFile, number: int = 0) -> Link:
    entry = b'{"number":%d}' % number
    return log.append(entry, at_ms=2_000_000 + number, signer=SIGNER)


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """A disk with room for no more: the kernel writes a part, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_new_log_is_empty_and_its_owners_alone(path: Path) -> None:
    with AuditFile.open(path) as log:
        assert (log.head, log.length, list(log.links)) == (FIRST, 0, [])
        assert log.repaired_bytes == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_appended_is_there_and_goes_on_after_opening_again(
    path: Path,
) -> None:
    with AuditFile.open(path) as log:
        first = [append(log, number) for number in range(3)]
        assert (log.head, log.length) == (first[-1].head, 3)
        log.sync()
    with AuditFile.open(path) as log:
        assert list(log.links) == first
        assert (log.head, log.length) == (first[-1].head, 3)
        later = append(log, 3)
        assert later.previous == first[-1].head
        assert list(log.links) == [*first, later]
    assert verified_links(path.read_bytes(), signer=SIGNER) == [*first, later]


def test_a_clock_that_goes_back_is_held_after_opening_too(path: Path) -> None:
    with opened(path, LOG) as log:
        link = log.append(b"{}", at_ms=1, signer=SIGNER)
    assert link.at_ms == LINKS[-1].at_ms


def test_two_logs_are_never_open_on_one_file(path: Path) -> None:
    with AuditFile.open(path) as log:
        with pytest.raises(StorageError) as caught:
            AuditFile.open(path)
        assert caught.value.code == "audit-busy"
        append(log)
    with AuditFile.open(path) as log:
        assert log.length == 1


def test_where_there_are_no_locks_it_says_so_and_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(_: int, __: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), AuditFile.open(path) as log:
        append(log)
    assert "no file locks" in caplog.text


@given(st.integers(LAST_LINE + 1, len(LOG) - 1))
def test_an_incomplete_last_line_is_dropped(scratch: Path, kept: int) -> None:
    with opened(scratch, LOG[:kept]) as log:
        assert log.repaired_bytes == kept - LAST_LINE
        assert list(log.links) == LINKS[:-1]
        append(log)
    assert verified_links(scratch.read_bytes(), signer=SIGNER)[:-1] == LINKS[:-1]


@given(st.integers(1, LOG.index(b"\n")))
def test_an_incomplete_first_line_is_dropped(scratch: Path, kept: int) -> None:
    with opened(scratch, LOG[:kept]) as log:
        assert (log.repaired_bytes, log.length) == (kept, 0)
        append(log)


@pytest.mark.parametrize("size", [1, 5_000, 200_000])
def test_room_that_a_file_system_made_and_never_filled_is_dropped(
    path: Path, size: int
) -> None:
    with opened(path, LOG + bytes(size)) as log:
        assert (log.repaired_bytes, log.head) == (size, LINKS[-1].head)


@pytest.mark.parametrize(
    "end", [b"#", b'{"payload": "', b"{}", b'{"payload":"' + bytes(17 * 2**20)]
)
def test_an_end_that_no_record_began_with_is_refused(path: Path, end: bytes) -> None:
    assert refused(path, LOG + end).code == "audit-malformed"


@pytest.mark.parametrize("content", [b"a letter", b"name,age\n", bytes(9) + b"\n"])
def test_another_file_is_refused_and_not_touched(path: Path, content: bytes) -> None:
    assert refused(path, content).code == "audit-malformed"


@given(st.integers(0, len(LOG) * 8 - 1))
def test_a_flipped_bit_is_refused_or_takes_the_last_record_away(
    scratch: Path, bit: int
) -> None:
    content = bytearray(LOG)
    content[bit // 8] ^= 1 << bit % 8
    try:
        with opened(scratch, bytes(content)) as log:
            links = [SIGNER.verify(link) for link in log.links]
    except CloisterError:
        return
    # Without its newline it is an incomplete line. The head shows what is missing.
    assert bit // 8 == len(LOG) - 1
    assert links == LINKS[:-1]


@pytest.mark.parametrize("missing", range(len(LINKS) - 1))
def test_a_log_without_one_record_is_refused(path: Path, missing: int) -> None:
    links = [link for link in LINKS if link.seq != missing]
    assert refused(path, log_of(links)).code == "audit-order"


def test_a_log_that_was_refused_can_be_opened_by_another(path: Path) -> None:
    refused(path, LOG[1:])
    with opened(path, LOG) as log:
        assert log.length == len(LINKS)


def test_a_full_disk_is_told_and_leaves_the_log_as_it_was(path: Path) -> None:
    with AuditFile.open(path) as log:
        first = append(log)
        size = path.stat().st_size
        with files_up_to(size + 100), pytest.raises(StorageError) as caught:
            append(log, 1)
        assert caught.value.code == "audit-unwritable"
        assert (log.head, log.length) == (first.head, 1)
        assert path.stat().st_size == size
        # The disk has room again.
        second = append(log, 2)
        assert list(log.links) == [first, second]
    assert verified_links(path.read_bytes(), signer=SIGNER) == [first, second]


def test_a_part_that_cannot_be_taken_away_ends_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ftruncate(_: int, __: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with AuditFile.open(path) as log:
        append(log)
        size = path.stat().st_size
        with files_up_to(size + 100), monkeypatch.context() as broken:
            broken.setattr(os, "ftruncate", ftruncate)
            with pytest.raises(StorageError):
                append(log, 1)
        with pytest.raises(StorageError) as caught:
            append(log, 2)
        assert caught.value.code == "audit-unwritable"
        assert log.length == 1
    assert path.stat().st_size == size + 100
    with AuditFile.open(path) as log:
        assert (log.repaired_bytes, log.length) == (100, 1)


def test_after_a_failed_sync_nothing_is_appended(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with AuditFile.open(path) as log:
        append(log)
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fsync)
            with pytest.raises(StorageError) as caught:
                log.sync()
        assert caught.value.code == "audit-unwritable"
        for again in (log.sync, lambda: append(log, 1)):
            with pytest.raises(StorageError, match="disk"):
                again()


def test_a_log_that_changes_while_it_is_open_is_not_read_to_its_end(
    path: Path,
) -> None:
    with opened(path, LOG) as log:
        others = made_links(
            [*ENTRIES[:-1], b'{"kind":"other","round":9}'], signer=SIGNER
        )
        assert len(log_of(others)) == len(LOG)
        with path.open("r+b") as file:
            file.write(log_of(others))
        links = log.links
        assert [next(links).seq for _ in LINKS] == [0, 1, 2, 3]
        with pytest.raises(StorageError) as caught:
            next(links)
    assert caught.value.code == "audit-broken"


def test_a_log_that_is_cut_while_it_is_open_is_not_read_to_its_end(
    path: Path,
) -> None:
    with opened(path, LOG) as log:
        os.truncate(path, LAST_LINE)
        with pytest.raises(StorageError) as caught:
            list(log.links)
    assert caught.value.code == "audit-broken"


@pytest.mark.parametrize("kept", range(len(LINKS) + 2))
def test_the_first_records_can_be_kept_and_gone_on_from(path: Path, kept: int) -> None:
    with opened(path, LOG) as log:
        dropped = log.keep_first(kept)
        assert (list(log.links), log.length) == (LINKS[:kept], min(kept, len(LINKS)))
        assert dropped == len(LOG) - path.stat().st_size
        link = append(log)
    assert verified_links(path.read_bytes(), signer=SIGNER) == [*LINKS[:kept], link]


def test_a_log_larger_than_a_read_is_read_whole(path: Path) -> None:
    entry = b'{"text":"%b"}' % (b"a" * 50_000)
    with AuditFile.open(path) as log:
        made = [log.append(entry, at_ms=0, signer=SIGNER) for _ in range(5)]
        assert list(log.links) == made
    with path.open("ab") as file:
        file.write(b'{"payload":"' + b"b" * 100_000)
    with AuditFile.open(path) as log:
        assert log.repaired_bytes == 100_012
        assert list(log.links) == made


@pytest.mark.parametrize("kind", ["directory", "link", "pipe", "absent"])
def test_what_is_no_file_is_refused(path: Path, tmp_path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        (tmp_path / "real").touch()
        path.symlink_to(tmp_path / "real")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path = tmp_path / "nowhere" / "audit.jsonl"
    with pytest.raises(StorageError) as caught:
        AuditFile.open(path)
    assert caught.value.code == "audit-unwritable"


def test_an_entry_that_is_no_object_is_a_bug_and_leaves_the_log(path: Path) -> None:
    with AuditFile.open(path) as log:
        with pytest.raises(ValueError, match="record"):
            log.append(b"1", at_ms=0, signer=SIGNER)
        assert (log.length, path.stat().st_size) == (0, 0)


def test_a_record_that_is_too_large_is_refused_and_leaves_the_log(path: Path) -> None:
    entry = b'{"text":"%b"}' % (b"a" * 13 * 2**20)
    with AuditFile.open(path) as log:
        with pytest.raises(StorageError) as caught:
            log.append(entry, at_ms=0, signer=SIGNER)
        assert caught.value.code == "audit-too-large"
        assert (log.length, path.stat().st_size) == (0, 0)


def test_a_closed_log_is_out_of_order(path: Path) -> None:
    log = AuditFile.open(path)
    log.close()
    log.close()
    for use in (lambda: append(log), log.sync, lambda: log.links):
        with pytest.raises(RuntimeError, match="closed"):
            use()


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_an_interruption_takes_back_what_was_written(
    path: Path, monkeypatch: pytest.MonkeyPatch, part: float
) -> None:
    """Ctrl-C comes between any two lines; a record must not be there twice."""
    write = os.write

    def interrupted(descriptor: int, data: bytes, /) -> int:
        write(descriptor, data[: int(part * len(data))])
        raise KeyboardInterrupt

    with opened(path, LOG) as log:
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append(log)
        assert (log.head, log.length) == (LINKS[-1].head, len(LINKS))
        assert path.read_bytes() == LOG
        monkeypatch.setattr(os, "write", write)
        append(log)
    with AuditFile.open(path) as log:
        assert log.length == len(LINKS) + 1


def test_an_interruption_that_cannot_be_undone_ends_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    with opened(path, LOG) as log:
        monkeypatch.setattr(os, "write", interrupted)
        monkeypatch.setattr(os, "ftruncate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            append(log)
        with pytest.raises(StorageError) as caught:
            append(log)
        assert caught.value.code == "audit-unwritable"


def test_it_does_not_show_what_is_in_it(path: Path) -> None:
    with opened(path, LOG) as log:
        assert repr(log) == f"AuditFile({str(path)!r}, length=4)"


def test_opening_never_reads_a_whole_log_into_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int, /) -> bytes:
        sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    entry = b'{"text":"%b"}' % (b"a" * 50_000)
    with AuditFile.open(path) as log:
        for _ in range(5):
            log.append(entry, at_ms=0, signer=SIGNER)
    with AuditFile.open(path) as log:
        assert sum(1 for _ in log.links) == 5
    assert max(sizes) == 2**16


@pytest.mark.parametrize("records", [1, 7, 40])
def test_a_process_killed_while_it_appends_leaves_a_log_that_opens(
    path: Path, records: int
) -> None:
    signer = PartySigner(Ed25519PrivateKey.from_private_bytes(KEY))
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "tests.support.appending_process", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(StorageError) as caught:
            AuditFile.open(path)
        assert caught.value.code == "audit-busy"
        process.stdin.write(b"\n")
        process.stdin.flush()
        heads = [process.stdout.readline().decode().strip() for _ in range(records)]
        process.kill()
        told = [line.decode().strip() for line in process.stdout]
    heads += [head for head in told if len(head) == len(FIRST)]
    with AuditFile.open(path) as log:
        links = [signer.verify(link) for link in log.links]
        # What was told is there; at most one record more, which nobody heard of.
        assert [link.head for link in links[: len(heads)]] == heads
        assert len(links) - len(heads) in {0, 1}
        append(log)
