"""The keys and the audit of a custodian, by the commands that people type."""

from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.conftest import cloister
from tests.support.custody_audit import verify_log
from tests.support.keyrings import new_identity_file

from cloister.storage.age import read_identity, recipient_of
from cloister.storage.keys import Secret, key_id

CANARY = Secret(b"canary: a key that is nowhere..!")
WORDS = "six words chosen by dice"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "alice"
    done = cloister("custodian", "init", str(directory), "--party", "alice")
    assert done.returncode == 0, done.stderr
    return directory


def keys(verb: str, directory: Path, *arguments: str) -> str:
    """Returns what a command of ``custodian keys`` prints for machines."""
    done = cloister("custodian", "keys", verb, str(directory), *arguments)
    assert done.returncode == 0, done.stderr
    assert CANARY.reveal().decode() not in done.stdout + done.stderr
    return done.stdout.strip()


def test_keys_are_added_replaced_and_destroyed(directory: Path, tmp_path: Path) -> None:
    own = tmp_path / "key"
    own.write_bytes(CANARY.reveal())
    first = keys("add", directory, "data", "--label", "scans", "--from", str(own))
    assert first == key_id("data", CANARY)
    second = json.loads(keys("rotate", directory, first, "--json"))
    assert second["replaces"] == first
    # Nobody is at the terminal to say yes.
    done = cloister("custodian", "keys", "revoke", str(directory), first)
    assert (done.returncode, "nobody to ask" in done.stderr) == (2, True)
    keys("revoke", directory, first, "--yes")
    listed = json.loads(keys("list", directory, "--json"))["keys"]
    assert {it["key"]: (it["label"], it["state"]) for it in listed} == {
        first: ("scans", "revoked"),
        second["key"]: ("scans", "active"),
    }
    for path in directory.iterdir():
        assert CANARY.reveal() not in path.read_bytes()


def test_a_vault_key_is_known_by_its_recipient(directory: Path, tmp_path: Path) -> None:
    identity = new_identity_file(tmp_path / "identity.txt")
    added = keys("add", directory, "vault", "--from", str(identity))
    assert added == recipient_of(read_identity(identity))
    status = cloister("custodian", "status", str(directory))
    assert added in status.stderr


def test_what_was_decided_is_written_once_and_signed(
    directory: Path, tmp_path: Path
) -> None:
    nothing = cloister("custodian", "audit", str(directory))
    assert (nothing.returncode, nothing.stdout) == (2, "")
    name = keys("add", directory, "state-share")
    path = tmp_path / "alice.audit.jsonl"
    audit = ("custodian", "audit", str(directory))
    assert cloister(*audit, "-o", str(path)).returncode == 0
    report = verify_log(path.read_bytes(), key=None)
    assert (report.party, report.records) == ("alice", 2)
    assert [it.key_id for it in report.keys] == [name]
    assert cloister(*audit).stdout.encode() == path.read_bytes()
    assert cloister(*audit, "-o", str(path)).returncode == 4
    head = cloister("custodian", "head", str(directory), "blobs/a")
    assert (head.returncode, head.stdout) == (2, "")


def at_terminal(answer: Callable[[], str], *arguments: str) -> tuple[int, str]:
    """Runs ``cloister`` at a terminal of its own; returns its code and its words."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "cloister", *arguments])  # noqa: S606
    shown = b""
    with os.fdopen(terminal, "r+b", buffering=0) as screen:
        while True:
            try:
                got = screen.read(4096)
            except OSError:  # how Linux says that nobody is at the other end
                break
            shown += got
            if got.rstrip().endswith(b":"):
                screen.write(f"{answer()}\n".encode())
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_a_person_opens_a_keyring_by_a_passphrase_that_nobody_sees(
    tmp_path: Path,
) -> None:
    # Slow for a good reason: each guess at a passphrase costs a second.
    directory = tmp_path / "alice"
    init = ("custodian", "init", str(directory), "--party", "alice")
    code, shown = at_terminal(lambda: WORDS, *init, "--keyring-passphrase")
    assert code == 0, shown
    assert WORDS not in shown
    assert not (directory / "keyring-identity.txt").exists()
    add = ("custodian", "keys", "add", str(directory), "data")
    code, shown = at_terminal(lambda: WORDS, *add)
    assert code == 0, shown
    assert WORDS not in shown
    assert "sha256:" in shown
    for path in directory.iterdir():
        assert WORDS.encode() not in path.read_bytes()
    # A process without a terminal, such as a service, is told what it needs.
    done = cloister(*add)
    assert (done.returncode, "passphrase_file" in done.stderr) == (2, True)
