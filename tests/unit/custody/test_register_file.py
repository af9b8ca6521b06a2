from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.refusals import code_of
from tests.support.registers import (
    MINUTE,
    PARTY,
    START,
    Content,
    content_at,
    content_of,
    deposit,
    grant,
    key_of_node,
    mark_of,
    meet,
    paced,
    raw,
    release,
    shown_by,
    signed_plan,
    successor_of,
)

from cloister.custody import register_errors, register_file, register_schema
from cloister.custody.register import Register
from cloister.custody.register_tables import Rows
from cloister.errors import StorageError, VerificationError

PLAN = signed_plan()
LAST_EPOCH = 40
NOBODY = 65534


def new_register(path: Path, *, nodes: int) -> Register:
    register = Register.create(path, party=PARTY)
    register.adopt(PLAN.text, PLAN.consent, at=START)
    for node in range(1, nodes + 1):
        grant(register, PLAN, node)
    deposit(register, PLAN, nodes, mark_of(3))
    return register


@pytest.fixture(scope="module")
def full_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A register with enough rows for trees of more than one page."""
    path = tmp_path_factory.mktemp("full") / "custodian.sqlite"
    new_register(path, nodes=LAST_EPOCH).close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def full_content(
    full_bytes: bytes, tmp_path_factory: pytest.TempPathFactory
) -> Content:
    path = tmp_path_factory.mktemp("content") / "custodian.sqlite"
    put_file(path, full_bytes)
    return content_at(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "custodian.sqlite"


def put_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)


def storage_code(act: Callable[[], object]) -> str:
    with pytest.raises(StorageError) as caught:
        act()
    return caught.value.code


def open_code(path: Path) -> str:
    return storage_code(lambda: Register.open(path))


def rewind_first(rows: Rows) -> None:
    """Changes one row."""
    row = rows.marks()[0]
    rows.put(dataclasses.replace(row, rewound=1), instead_of=row, at=row.at)


# Made


def test_a_new_file_is_its_owners_alone_and_lies_alone(path: Path) -> None:
    old = os.umask(0)
    try:
        with Register.create(path, party=PARTY) as register:
            register.adopt(PLAN.text, PLAN.consent, at=START)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_nlink == 1
    assert list(path.parent.iterdir()) == [path]


def test_the_journal_is_its_owners_alone_too(path: Path) -> None:
    with new_register(path, nodes=1) as register:
        old = os.umask(0)
        try:
            with register._file.transaction() as rows:
                rewind_first(rows)
                journal = Path(f"{path}-journal")
                assert stat.S_IMODE(journal.stat().st_mode) == 0o600
        finally:
            os.umask(old)
        assert not journal.exists()


@pytest.mark.parametrize("ending", ["", "-journal", "-wal", "-shm"])
@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
def test_nothing_is_made_over_what_is_there(path: Path, ending: str, kind: str) -> None:
    there = Path(f"{path}{ending}")
    if kind == "file":
        there.write_bytes(b"something")
    elif kind == "directory":
        there.mkdir()
    else:
        there.symlink_to(path.parent / "nowhere")
    code = storage_code(lambda: Register.create(path, party=PARTY))
    assert code == "register-exists"
    assert list(path.parent.iterdir()) == [there]
    if kind == "file":
        assert there.read_bytes() == b"something"


def test_nothing_is_made_where_there_is_no_directory(path: Path) -> None:
    code = storage_code(lambda: Register.create(path / "deeper", party=PARTY))
    assert code == "register-unusable"
    assert list(path.parent.iterdir()) == []


def test_a_path_with_odd_characters_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a b?c#d%20é&mode=memory"
    Register.create(path, party=PARTY).close()
    assert list(tmp_path.iterdir()) == [path]
    assert content_at(path) == ((), (), ())


def test_a_register_is_kept_as_the_decision_says(path: Path) -> None:
    with Register.create(path, party=PARTY) as register:
        connection = register._file._connection
        assert connection is not None
        ask = connection.execute
        assert ask("PRAGMA journal_mode").fetchone() == ("delete",)
        assert ask("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert ask("PRAGMA foreign_keys").fetchone() == (1,)
        assert ask("PRAGMA secure_delete").fetchone() == (1,)
        assert ask("PRAGMA busy_timeout").fetchone() == (10_000,)
        assert ask("PRAGMA max_page_count").fetchone() == (65_536,)
        tables = ask("PRAGMA table_list").fetchall()
    ours = [row for row in tables if not row[1].startswith("sqlite_")]
    assert len(ours) == 7
    assert all(row[5] == 1 for row in ours)  # STRICT


# Not a register


def test_what_is_not_there_is_not_opened_and_not_made(path: Path) -> None:
    assert open_code(path) == "register-missing"
    assert list(path.parent.iterdir()) == []


def test_a_directory_is_no_register(path: Path) -> None:
    path.mkdir()
    assert open_code(path) == "register-foreign"


def test_an_endless_device_is_no_register() -> None:
    assert open_code(Path("/dev/zero")) == "register-foreign"


def test_a_file_larger_than_a_register_gets_is_not_read(path: Path) -> None:
    put_file(path, b"")
    os.truncate(path, register_errors.MAX_BYTES + 1)
    assert open_code(path) == "register-foreign"


def test_an_empty_file_is_no_register(path: Path) -> None:
    put_file(path, b"")
    assert open_code(path) == "register-foreign"


@pytest.mark.parametrize("length", [1, 99, 100, 512, 4096, 10_000])
def test_text_is_no_register(path: Path, length: int) -> None:
    put_file(path, (b"[custodian]\n" * 1000)[:length])
    assert open_code(path) in {"register-damaged", "register-foreign"}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mark", [0, 1, register_schema.APPLICATION_ID ^ 1])
def test_another_applications_database_is_left_alone(path: Path, mark: int) -> None:
    with raw(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA application_id = {mark}")
        connection.execute("CREATE TABLE consents (plan_hash)")
    path.chmod(0o600)
    before = path.read_bytes()
    assert open_code(path) == "register-foreign"
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 1, 3, 2**31 - 1])
def test_another_format_is_left_to_the_version_that_wrote_it(
    path: Path, version: int
) -> None:
    Register.create(path, party=PARTY).close()
    with raw(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    assert open_code(path) == "register-format"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (x)",
        "CREATE TRIGGER less AFTER INSERT ON warrants BEGIN DELETE FROM warrants; END",
        "CREATE VIEW seen AS SELECT * FROM warrants",
        "DROP TABLE marks",
        "DROP INDEX newest_plan_of_run",
        "DROP INDEX active_key_of_label",
        "DROP TRIGGER no_record_changes",
        "DROP TRIGGER no_record_goes",
        "ALTER TABLE marks ADD COLUMN more TEXT",
    ],
)
def test_other_tables_and_triggers_are_refused(path: Path, statement: str) -> None:
    Register.create(path, party=PARTY).close()
    with raw(path) as connection:
        connection.execute(statement)
    assert open_code(path) == "register-damaged"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_file_others_can_reach_is_refused(path: Path, mode: int) -> None:
    with Register.create(path, party=PARTY) as register:
        path.chmod(mode)
        assert storage_code(register.plans) == "register-exposed"
    assert open_code(path) == "register-exposed"
    path.chmod(0o600)
    assert content_at(path) == ((), (), ())


# Changed rows


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE warrants SET epoch = epoch + 100 WHERE epoch = 3",
        "UPDATE warrants SET expires_at = expires_at + 1 WHERE epoch = 3",
        "UPDATE warrants SET role = 'server' WHERE epoch = 3",
        "UPDATE warrants SET row_hash = zeroblob(32) WHERE epoch = 3",
        "DELETE FROM warrants WHERE epoch = 3",
        "DELETE FROM warrants",
        "UPDATE marks SET round = 0",
        "UPDATE marks SET state = zeroblob(32)",
        "UPDATE marks SET audit_head = zeroblob(32)",
        "DELETE FROM marks",
        "UPDATE consents SET state = 'withdrawn'",
        "UPDATE consents SET at = 0",
        "DELETE FROM consents",
        "UPDATE register SET party = 'bob'",
        "UPDATE register SET changes = 0",
        "UPDATE register SET newest_at = 0",
        "UPDATE register SET rows = zeroblob(32)",
        "DELETE FROM register",
    ],
)
def test_a_row_changed_by_anything_else_is_found_at_the_next_start(
    path: Path, statement: str
) -> None:
    new_register(path, nodes=3).close()
    with raw(path) as connection:
        connection.execute(statement)
    before = path.read_bytes()
    assert open_code(path) == "register-damaged"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE warrants SET tls_key = zeroblob(91) WHERE epoch = 3",
        "UPDATE warrants SET epoch = 2 WHERE epoch = 3",
        "UPDATE register SET newest_at = 0",
        "UPDATE consents SET state = 'superseded'",
    ],
)
def test_a_row_changed_under_a_running_custodian_is_not_used(
    path: Path, statement: str
) -> None:
    with new_register(path, nodes=3) as register, raw(path) as connection:
        with contextlib.suppress(sqlite3.IntegrityError):
            connection.execute("DELETE FROM warrants WHERE epoch = 2")
        connection.execute(statement)
        assert storage_code(lambda: grant(register, PLAN, 4)) == "register-damaged"


# Damage


def check_unchanged_or_refused(path: Path, wanted: Content) -> bool:
    """Returns whether the file was refused; otherwise it must be as it was."""
    try:
        with Register.open(path) as register:
            assert content_of(register) == wanted
            # Not only what is shown is right, but also what is looked up.
            assert grant(register, PLAN, LAST_EPOCH).epoch == LAST_EPOCH
            assert code_of(lambda: grant(register, PLAN, 1)) == "warrant-superseded"
            assert register.plan(PLAN.hash) == PLAN.plan
            assert register.mark("blobs/a") == mark_of(3)
            assert grant(register, PLAN, LAST_EPOCH + 1).epoch == LAST_EPOCH + 1
    except StorageError:
        return True
    return False


def test_every_flipped_byte_of_the_header_is_refused_or_harmless(
    path: Path, full_bytes: bytes, full_content: Content
) -> None:
    refused = 0
    for at in range(100):
        for flip in (0x01, 0xFF):
            changed = bytearray(full_bytes)
            changed[at] ^= flip
            put_file(path, bytes(changed))
            refused += check_unchanged_or_refused(path, full_content)
            for ending in ("-wal", "-shm", "-journal"):
                Path(f"{path}{ending}").unlink(missing_ok=True)
    assert refused > 60


@settings(max_examples=200)
@given(flips=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3))
def test_flipped_bits_of_pages_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory,
    full_bytes: bytes,
    full_content: Content,
    flips: list[int],
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.sqlite"
    changed = bytearray(full_bytes)
    for flip in flips:
        bit = flip % (8 * len(changed))
        changed[bit // 8] ^= 1 << bit % 8
    put_file(path, bytes(changed))
    check_unchanged_or_refused(path, full_content)
    Path(f"{path}-journal").unlink(missing_ok=True)


def test_flipped_bits_where_something_is_written_are_refused(
    path: Path, full_bytes: bytes, full_content: Content
) -> None:
    # Most of a page is empty, so a byte at random is seldom one that matters.
    places = [at for at in range(100, len(full_bytes)) if full_bytes[at]]
    refused = 0
    for at in places[:: len(places) // 150]:
        changed = bytearray(full_bytes)
        changed[at] ^= 0x10
        put_file(path, bytes(changed))
        refused += check_unchanged_or_refused(path, full_content)
    assert refused > 120


def test_every_truncated_file_is_refused_or_harmless(
    path: Path, full_bytes: bytes, full_content: Content
) -> None:
    whole = len(full_bytes)
    for length in {*range(1, whole, 1024), whole - 4096, whole - 1, 1, 99, 100}:
        put_file(path, full_bytes[:length])
        assert check_unchanged_or_refused(path, full_content)


def test_zeroed_and_swapped_pages_are_refused(
    path: Path, full_bytes: bytes, full_content: Content
) -> None:
    pages = [full_bytes[at : at + 4096] for at in range(0, len(full_bytes), 4096)]
    for at in range(len(pages)):
        put_file(path, b"".join([*pages[:at], bytes(4096), *pages[at + 1 :]]))
        assert check_unchanged_or_refused(path, full_content)
    for at in range(2, len(pages)):
        put_file(path, b"".join([*pages[: at - 1], pages[at], pages[at - 1]]))
        assert check_unchanged_or_refused(path, full_content)


# Crashes


def test_a_transaction_that_was_under_way_is_undone(path: Path, tmp_path: Path) -> None:
    new_register(path, nodes=3).close()
    wanted = content_at(path)
    crashed = tmp_path / "crashed.sqlite"
    with raw(path) as connection:
        # So small a cache that pages are written before the transaction ends.
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE warrants SET epoch = epoch + 100")
        connection.execute("UPDATE consents SET plan = zeroblob(250000)")
        for ending in ("", "-journal"):
            shutil.copy(f"{path}{ending}", f"{crashed}{ending}")
    assert crashed.read_bytes() != path.read_bytes()
    assert content_at(crashed) == wanted
    assert not Path(f"{crashed}-journal").exists()


def change_and_fail(register: Register) -> None:
    with register._file.transaction() as rows:
        rewind_first(rows)
        raise KeyboardInterrupt


def test_an_error_in_a_transaction_undoes_all_of_it(path: Path) -> None:
    with new_register(path, nodes=3) as register:
        before = content_of(register)
        with pytest.raises(KeyboardInterrupt):
            change_and_fail(register)
        assert content_of(register) == before


# Disks and permissions


@contextlib.contextmanager
def no_file_longer_than(size_bytes: int) -> Iterator[None]:
    """Makes every longer write fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 600, 4096, 5000, 9000, 16384, 20480])
def test_a_full_disk_loses_nothing_and_spends_no_epoch(path: Path, room: int) -> None:
    with new_register(path, nodes=3) as register:
        before = content_of(register)
        with no_file_longer_than(room):
            code = storage_code(lambda: grant(register, PLAN, 4))
            assert code in {"register-full", "register-unusable"}
        assert content_of(register) == before
        assert grant(register, PLAN, 4).epoch == 4
    assert [row.epoch for row in content_at(path)[1]] == [1, 2, 3, 4]


@pytest.mark.parametrize("room", [0, 600, 4096, 5000, 20480])
def test_a_full_disk_leaves_no_part_of_a_new_register(path: Path, room: int) -> None:
    with no_file_longer_than(room):
        code = storage_code(lambda: Register.create(path, party=PARTY))
    assert code in {"register-full", "register-unusable"}
    assert list(path.parent.iterdir()) == []


def test_a_register_does_not_grow_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_register(path, nodes=3).close()
    pages = path.stat().st_size // 4096
    free = register_errors.KEPT_FREE_BYTES
    monkeypatch.setattr(register_file, "MAX_BYTES", 4096 * (pages + 8) + free)
    spent: list[int] = []

    def go_on() -> None:
        spent.extend(
            grant(register, PLAN, node, at=paced(register)).epoch
            for node in range(4, 400)
        )

    with Register.open(path) as register:
        assert storage_code(go_on) == "register-full"
        key = key_of_node(spent[-1])
        assert register.check_node(PLAN.hash, party=PARTY, tls_key=key) == spent[-1]
    assert [row.epoch for row in content_at(path)[1]] == [1, 2, 3, *spent]


def test_what_nodes_fill_leaves_room_for_their_operator(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = register_errors.KEPT_FREE_BYTES
    monkeypatch.setattr(register_file, "MAX_BYTES", free + 64 * 4096)
    with new_register(path, nodes=1) as register:
        meet(register, PLAN, 1, epoch=1)

        def go_on() -> None:
            for epoch in range(2, 400):
                at = START + 61 * epoch * MINUTE / 60
                meet(register, PLAN, epoch, epoch=epoch, at=at)

        assert storage_code(go_on) == "register-full"
        late = START + 7 * 60 * MINUTE
        showed = shown_by(PLAN.plan, key_of_node(1), party=PARTY)
        no = VerificationError("no", code="no")
        refused = partial(register.note_refusal, showed, collateral=None, error=no)
        for act in (
            partial(grant, register, PLAN, 1, at=late),
            partial(release, register, PLAN, 1, at=late),
            partial(refused, at=late),
        ):
            assert storage_code(act) == "register-full"
        # What a node needs that has its warrant takes no room.
        deposit(register, PLAN, 1, mark_of(4), at=late)
        successor = successor_of(PLAN, mark_of(4))
        register.adopt(successor.text, successor.consent, at=late)
        assert register.rewind("blobs/a", at=late) == mark_of(4)
        register.withdraw(successor.hash, at=late)
        with register.transaction() as rows:
            assert rows.head.newest_at == int(late.timestamp())


def test_a_row_that_the_tables_forbid_is_a_fault_of_ours(path: Path) -> None:
    """Nobody is told to put an older copy back, for the rows are whole."""
    with new_register(path, nodes=3) as register:
        before = content_of(register)
        row = register.warrants()[-1]

        def end_before_it_began() -> None:
            gone = dataclasses.replace(row, expires_at=row.issued_at)
            with register.transaction() as rows:
                rows.put(gone, instead_of=row, at=row.issued_at)

        with pytest.raises(StorageError) as caught:
            end_before_it_began()
        assert caught.value.code == "register-rule"
        assert "copy" not in caught.value.remedy
        assert content_of(register) == before


@contextlib.contextmanager
def ordinary_user(*owned: Path) -> Iterator[None]:
    """Gives up what root may more than others, and owns the files meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    for path in owned:
        os.chown(path, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can come to."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_a_file_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    path = open_directory / "custodian.sqlite"
    new_register(path, nodes=3).close()
    path.chmod(0o400)
    with ordinary_user(open_directory, path):
        assert open_code(path) == "register-unusable"
        path.chmod(0o000)
        assert open_code(path) == "register-unusable"
        path.chmod(0o600)
        assert len(content_at(path)[1]) == 3


def test_a_directory_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    path = open_directory / "custodian.sqlite"
    with new_register(path, nodes=3) as register:
        before = content_of(register)
        open_directory.chmod(0o500)
        with ordinary_user(open_directory, path):
            code = storage_code(lambda: grant(register, PLAN, 4))
            assert code == "register-unusable"
            elsewhere = open_directory / "another.sqlite"
            code = storage_code(lambda: Register.create(elsewhere, party=PARTY))
            assert code == "register-unusable"
            open_directory.chmod(0o700)
            assert content_of(register) == before
            assert grant(register, PLAN, 4).epoch == 4


def test_a_lock_that_is_held_for_long_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_register(path, nodes=3).close()
    monkeypatch.setattr(register_file, "BUSY_SECONDS", 0.05)
    with Register.open(path) as register, raw(path) as other:
        other.execute("BEGIN IMMEDIATE")
        assert storage_code(lambda: grant(register, PLAN, 4)) == "register-busy"
        assert storage_code(register.plans) == "register-busy"
        other.execute("ROLLBACK")
        # A reader, such as a backup, holds up the end of a change.
        other.execute("BEGIN")
        other.execute("SELECT * FROM warrants").fetchone()
        assert storage_code(lambda: grant(register, PLAN, 4)) == "register-busy"
        other.execute("ROLLBACK")
        assert grant(register, PLAN, 4).epoch == 4
