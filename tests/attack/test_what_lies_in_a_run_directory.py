"""Whoever owns a run's directory puts something else where the audit log should be.

Availability is the host's. But a server ends in an error that says what to do, at once,
and neither follows, makes nor cuts another file for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.made_audit import AuditedRun, lines_of, text_of

from cloister.errors import CloisterError, StorageError, VerificationError
from cloister.federation import audit_start
from cloister.federation.audit_past import Past, read_past
from cloister.federation.audit_records import CollateralUsed, encode_entry
from cloister.federation.audit_signing import ServerSigner
from cloister.federation.audit_start import open_audit
from cloister.ratls.node import Node
from cloister.storage.audit_file import AuditFile

ORPHAN = encode_entry(CollateralUsed(sha256="c" * 64, text="{}"))
NOBODY = 65534


@pytest.fixture
def story(federation: Federation, tmp_path: Path) -> AuditedRun:
    """A run that came to its second round, and stopped."""
    made = AuditedRun(federation, tmp_path / "audit.jsonl")
    made.begin()
    made.admit_all()
    made.train(2)
    made.log.close()
    return made


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Gives up what root may more than others."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def appended(path: Path, signer: Node, *entries: bytes) -> None:
    """Has a key that no server introduced go on with the log."""
    with AuditFile.open(path) as file:
        for entry in entries:
            file.append(entry, at_ms=0, signer=ServerSigner(signer.identity))


@pytest.fixture
def server(federation: Federation, story: AuditedRun) -> Node:
    """The next server of the run."""
    return federation.node("aggregator", clock=story.clock, epoch=2)


def found_there(path: Path, node: Node) -> CloisterError:
    """Returns why a server does not use what lies at its log's place."""
    with pytest.raises((StorageError, VerificationError)) as caught:
        open_audit(
            path,
            node=node,
            consents=(),
            plan_text=text_of(node.plan),
            known=None,
            known_under=None,
        )
    error = caught.value
    assert error.expected
    assert error.remedy, "it says what to do"
    return error


def test_a_link_is_not_followed(story: AuditedRun, server: Node) -> None:
    """Where it leads, another file might be made or cut."""
    content = story.path.read_bytes()
    link = story.path.with_name("link.jsonl")
    for target in (story.path, story.path.with_name("none"), Path("/dev/zero")):
        link.symlink_to(target)
        assert found_there(link, server).code == "audit-unwritable"
        link.unlink()
    assert story.path.read_bytes() == content
    assert not story.path.with_name("none").exists()


def test_what_is_no_ordinary_file_is_refused_at_once(
    server: Node, tmp_path: Path
) -> None:
    """Nobody writes to the pipe; a server that opened it might wait for ever."""
    path = tmp_path / "other.jsonl"
    path.mkdir()
    assert found_there(path, server).code == "audit-unwritable"
    path.rmdir()
    os.mkfifo(path)
    assert found_there(path, server).code == "audit-unwritable"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert found_there(path, server).code == "audit-unwritable"


def test_a_run_directory_that_is_gone_is_refused(server: Node, tmp_path: Path) -> None:
    error = found_there(tmp_path / "gone" / "audit.jsonl", server)
    assert error.code == "audit-unwritable"


def test_a_log_that_this_user_may_not_write_to_is_refused(
    story: AuditedRun, server: Node
) -> None:
    story.path.chmod(0o400)
    with ordinary_user():
        assert found_there(story.path, server).code == "audit-unwritable"


@pytest.mark.parametrize("start", [b"", b"{", b"\n", b'{"payload":"'])
def test_a_huge_file_is_refused_at_once_and_left_alone(
    server: Node, tmp_path: Path, start: bytes
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(start)
    os.truncate(path, 2**40)
    assert found_there(path, server).code == "audit-malformed"
    assert path.stat().st_size == 2**40


@pytest.mark.parametrize("content", [b"no log\n", b"no log", b"{}\n", b"\xff" * 99])
def test_any_other_file_is_refused_and_left_alone(
    server: Node, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    assert found_there(path, server).code == "audit-malformed"
    assert path.read_bytes() == content


def test_a_log_that_is_locked_by_anybody_is_refused_at_once(
    story: AuditedRun, server: Node
) -> None:
    with story.path.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert found_there(story.path, server).code == "audit-busy"


def test_a_log_of_many_records_by_nobody_is_refused(
    story: AuditedRun, server: Node, federation: Federation
) -> None:
    """Their hashes fit each other; who has no key can write no more than that."""
    appended(story.path, federation.node("bob"), *[ORPHAN] * 100)
    assert found_there(story.path, server).code == "audit-foreign"


def test_a_log_that_is_exchanged_while_it_is_open_is_cut_nowhere_else(
    story: AuditedRun, server: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name may lead elsewhere by the time that an end is dropped."""
    appended(story.path, server, ORPHAN)
    precious = story.path.with_name("precious")
    precious.write_bytes(b"x" * 2**20)

    def exchanged(*arguments: Any, **named: Any) -> Past:
        past = read_past(*arguments, **named)
        story.path.unlink()
        story.path.symlink_to(precious)
        return past

    monkeypatch.setattr(audit_start, "read_past", exchanged)
    with open_audit(
        story.path,
        node=server,
        consents=(),
        plan_text=text_of(server.plan),
        known=None,
        known_under=None,
    ) as log:
        assert log.dropped_bytes > 0
    assert precious.stat().st_size == 2**20


def test_a_log_that_changes_while_it_is_read_is_refused(
    story: AuditedRun, server: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = story.links()

    def shortened(*arguments: Any, **named: Any) -> Past:
        story.path.write_bytes(lines_of(*links[:-1]))
        return read_past(*arguments, **named)

    monkeypatch.setattr(audit_start, "read_past", shortened)
    assert found_there(story.path, server).code == "audit-broken"
