"""What earlier starts of a run left: its end, or files to go on from, or to move."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import Federation
from tests.support.log_lines import record
from tests.support.places import place_of

from cloister.cli.earlier_starts import (
    check_begins,
    check_not_over,
    check_unknown,
    set_aside,
)
from cloister.cli.places import Place
from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.plan.digest import format_digest
from cloister.plan.plan import Predecessor
from cloister.ratls.mark import Mark
from cloister.storage.dsse import MAX_LINE_BYTES

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MARK = Mark(
    round=7, state=bytes(32), server_epoch=1, server_key=bytes(32), audit_head=bytes(32)
)


@pytest.fixture
def place(federation: Federation, tmp_path: Path) -> Place:
    """The server's place; the directory of its run is there."""
    made = place_of(federation.plan, tmp_path, party="aggregator")
    made.run_directory.mkdir(parents=True)
    return made


def refusal(place: Place) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_not_over(place)
    return caught.value


def test_a_run_that_was_never_started_may_begin(place: Place) -> None:
    assert check_not_over(place) is place


@pytest.mark.parametrize(
    "log",
    [
        b"",
        record("run-opened") + record("round"),
        record("round") + record("run-failed"),
        # Whoever recorded it died in the middle of the line: nobody was told.
        record("round") + record("model-sealed")[:-1],
        record("model-sealed") + record("server-introduced"),
        b"no log\n",
        2 * MAX_LINE_BYTES * b"x" + b"\n",
    ],
    ids=range(7),
)
def test_a_run_whose_log_does_not_end_with_the_sealed_model_goes_on(
    place: Place, log: bytes
) -> None:
    place.audit_path.write_bytes(log)
    # A server that was killed while it sealed leaves one; it is sealed anew.
    place.model_path.write_bytes(b"sealed")
    assert check_not_over(place) is place


def test_a_run_whose_model_is_recorded_is_over_though_the_model_is_gone(
    place: Place,
) -> None:
    place.audit_path.write_bytes(record("round") + record("model-sealed") + b'{"pay')
    assert refusal(place).code == "run-exists"


def test_a_model_without_any_log_is_nobodys_to_write_over(place: Place) -> None:
    place.model_path.write_bytes(b"sealed")
    error = refusal(place)
    assert error.code == "run-exists"
    assert "--fresh" in error.remedy


def test_a_log_that_cannot_be_read_is_said(place: Place) -> None:
    place.audit_path.mkdir()
    with pytest.raises(StorageError) as caught:
        check_not_over(place)
    assert caught.value.code == "audit-unreadable"


def test_what_takes_over_a_run_cannot_begin_it_anew(place: Place) -> None:
    assert check_begins(place.plan) is place.plan
    digest = format_digest(bytes(32))
    named = Predecessor(plan=digest, state=digest, round=0)
    with pytest.raises(ConfigError) as caught:
        check_begins(msgspec.structs.replace(place.plan, predecessor=named))
    assert caught.value.code == "fresh-amended"


def test_custodians_that_know_the_run_are_named_with_what_to_run(place: Place) -> None:
    plan = place.plan
    assert check_unknown(plan, place.plan_path, {"aggregator": None}) is plan
    (place.plan_directory / "custodians" / "alice").mkdir(parents=True)
    marks = {"aggregator": None, "alice": MARK}
    with pytest.raises(VerificationError) as caught:
        check_unknown(plan, place.plan_path, marks)
    assert caught.value.code == "state-rolled-back"
    assert "round 7" in caught.value.got
    directory = place.plan_directory / "custodians" / "alice"
    said = caught.value.remedy
    assert f"cloister custodian rewind {directory} {plan.run_id}" in said
    # Bob's was not asked, and may know it too; the server's was, and does not.
    assert f"rewind DIR-OF-BOB {plan.run_id}" in said
    assert "AGGREGATOR" not in said


def test_what_a_server_left_is_set_aside_whole(place: Place) -> None:
    former = place.run_directory / "audit.0123456789abcdef.jsonl"
    place.state_directory.mkdir()
    cohort = place.mirror_path.with_name(place.mirror_path.name + ".cohort")
    files = (place.audit_path, former, place.model_path, place.mirror_path, cohort)
    for file in files:
        file.write_text(file.name)
    others = (place.state_directory / "alice.00.mirror", place.graph_path)
    for file in (*others, place.lock_path):
        file.write_text("another's, or nobody's")
    moved = set_aside(place, at=NOON)
    assert sorted(moved) == sorted(
        file.parent / "before-20261122-120000" / file.name for file in files
    )
    assert all(file.read_text() == file.name for file in moved)
    assert not any(file.exists() for file in files)
    assert all(file.exists() for file in (*others, place.lock_path))
    assert moved[0].name == place.audit_path.name, "a state without its log is refused"
    assert moved[-1].name == place.model_path.name
    assert set_aside(place, at=NOON) == []


def test_nothing_that_was_set_aside_is_written_over(place: Place) -> None:
    place.audit_path.write_text("first")
    [first] = set_aside(place, at=NOON)
    place.audit_path.write_text("second")
    with pytest.raises(StorageError, match="cannot set"):
        set_aside(place, at=NOON)
    assert (first.read_text(), place.audit_path.read_text()) == ("first", "second")


def test_a_worker_sets_its_own_state_aside_and_nothing_of_the_runs(
    federation: Federation, place: Place, tmp_path: Path
) -> None:
    alice = place_of(federation.plan, tmp_path, party="alice")
    alice.state_directory.mkdir()
    for file in (alice.mirror_path, place.mirror_path, place.audit_path):
        file.write_text("state")
    [moved] = set_aside(alice, at=NOON)
    assert moved.name == alice.mirror_path.name
    assert place.mirror_path.exists()
    assert place.audit_path.exists()
