from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import msgspec
import pytest
from tests.support.refusals import code_of
from tests.support.registers import (
    LIFE,
    MINUTE,
    PARTY,
    START,
    SignedPlan,
    deposit,
    digest_of,
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
    transcript_of,
)

from cloister.custody.audit_records import (
    AnyCustodianEntry,
    CollateralKept,
    ConsentGiven,
    ConsentWithdrawn,
    CustodianOpened,
    KeyReleased,
    MarkRewound,
    NodeRefused,
    WarrantNoted,
    WarrantSigned,
)
from cloister.custody.register import Register
from cloister.custody.register_records import (
    REFUSALS_AN_HOUR,
    RELEASES_AN_HOUR,
    WARRANTS_AN_HOUR,
)
from cloister.errors import ProtocolError, StorageError, VerificationError
from cloister.ratls.epochs import key_digest
from cloister.ratls.testimony import Testimony, collateral_sha256
from cloister.storage.audit_chain import FIRST, head_of

PLAN = signed_plan()
HOUR = timedelta(hours=1)
WHY = VerificationError("the node is too late", code="too-late", got="now")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "custodian.sqlite"


@pytest.fixture
def register(path: Path) -> Iterator[Register]:
    """A register whose party consented to the plan, with one node."""
    with Register.create(path, party=PARTY) as register:
        adopt(register, PLAN)
        grant(register, PLAN, 1)
        yield register


def adopt(register: Register, plan: SignedPlan) -> None:
    register.adopt(plan.text, plan.consent, at=START)


def entries(register: Register) -> list[AnyCustodianEntry]:
    """Returns all records, after their chain was checked."""
    found, head = [], FIRST
    for seq, row in enumerate(register.records()):
        payload = msgspec.json.decode(row.payload)
        assert (row.seq, row.previous) == (seq, head)
        assert (payload["seq"], payload["previous"]) == (seq, head)
        assert (payload["at"], payload["entry"]["kind"]) == (row.at_ms, row.kind)
        found.append(msgspec.convert(payload["entry"], AnyCustodianEntry))
        head = head_of(row.payload)
    return found


def last(register: Register) -> AnyCustodianEntry:
    return entries(register)[-1]


def kinds(register: Register) -> list[str]:
    return [row.kind for row in register.records()]


def protocol_code(act: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        act()
    return caught.value.code


# What is recorded


def test_the_first_record_says_whose_custodian_it_is(path: Path) -> None:
    with Register.create(path, party=PARTY) as register:
        assert entries(register) == []
        adopt(register, PLAN)
        assert entries(register)[0] == CustodianOpened(party=PARTY)
        assert kinds(register) == ["custodian-opened", "consent-given"]


def test_a_consent_is_recorded_with_its_plan_once(register: Register) -> None:
    adopt(register, PLAN)
    consent = msgspec.json.format(msgspec.json.encode(PLAN.consent))
    given = entries(register)[1]
    assert isinstance(given, ConsentGiven)
    assert (given.plan, given.plan_hash, given.supersedes) == (
        PLAN.text,
        PLAN.hash,
        None,
    )
    assert msgspec.json.format(given.consent) == consent
    assert kinds(register).count("consent-given") == 1


def test_an_amendment_and_a_withdrawal_are_recorded(register: Register) -> None:
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    given = last(register)
    assert isinstance(given, ConsentGiven)
    assert given.supersedes == PLAN.hash
    register.withdraw(successor.hash, at=START)
    withdrawn = ConsentWithdrawn(run_id="blobs/a", plan_hash=successor.hash)
    assert last(register) == withdrawn
    register.withdraw(successor.hash, at=START)
    assert kinds(register).count("consent-withdrawn") == 1


def test_a_warrant_is_recorded_with_what_the_node_showed(register: Register) -> None:
    terms = grant(register, PLAN, 2)
    showed = shown_by(PLAN.plan, key_of_node(2), party=PARTY)
    assert last(register) == WarrantSigned(
        terms=terms, epoch_new=True, testimony=showed
    )
    renewed = grant(register, PLAN, 2, at=START + MINUTE)
    assert last(register) == WarrantSigned(
        terms=renewed, epoch_new=False, testimony=showed
    )


def test_collateral_is_recorded_once_and_before_what_names_it(
    register: Register,
) -> None:
    text = "{}"
    showed = msgspec.structs.replace(
        shown_by(PLAN.plan, key_of_node(2), party=PARTY),
        collateral=collateral_sha256(text),
    )
    before = len(entries(register))
    for _ in range(2):
        register.grant(showed, collateral=text, at=START, life=LIFE)
    assert kinds(register)[before:] == ["collateral", "warrant-signed"] * 1 + [
        "warrant-signed"
    ]
    assert entries(register)[before] == CollateralKept(
        sha256=collateral_sha256(text), text=text
    )


@pytest.mark.parametrize("text", [None, "{ }"])
def test_collateral_that_is_not_what_is_named_is_a_bug(
    register: Register, text: str | None
) -> None:
    showed = msgspec.structs.replace(
        shown_by(PLAN.plan, key_of_node(2), party=PARTY),
        collateral=collateral_sha256("{}"),
    )
    before = entries(register)
    with pytest.raises(RuntimeError):
        register.grant(showed, collateral=text, at=START, life=LIFE)
    assert entries(register) == before
    assert len(register.warrants()) == 1


def test_no_warrant_is_for_another_partys_node(register: Register) -> None:
    for party, at_party in (("bob", PARTY), (PARTY, "bob")):
        showed = shown_by(PLAN.plan, key_of_node(2), party=party, at_party=at_party)
        with pytest.raises(RuntimeError):
            register.grant(showed, collateral=None, at=START, life=LIFE)


def test_what_is_refused_is_not_recorded_by_itself(register: Register) -> None:
    grant(register, PLAN, 2)
    before = entries(register)
    assert code_of(lambda: grant(register, PLAN, 1)) == "warrant-superseded"
    assert code_of(lambda: release(register, PLAN, 1)) == "warrant-superseded"
    assert entries(register) == before


def test_a_rewound_mark_is_recorded_and_nothing_is_where_there_was_none(
    register: Register,
) -> None:
    register.rewind("blobs/a", at=START)
    assert "mark-rewound" not in kinds(register)
    deposit(register, PLAN, 1, mark_of(5))
    register.rewind("blobs/a", at=START)
    assert last(register) == MarkRewound(
        run_id="blobs/a", round=5, state=digest_of("x 5"), audit_head=None
    )


def test_the_time_of_records_never_goes_back(register: Register) -> None:
    grant(register, PLAN, 2, at=START + 9 * MINUTE)
    grant(register, PLAN, 3, at=START)
    times = [row.at_ms for row in register.records()]
    assert times == sorted(times)
    assert times[-1] == int((START + 9 * MINUTE).timestamp()) * 1000


def test_many_records_are_all_shown(register: Register) -> None:
    for node in range(2, 72):
        grant(register, PLAN, node, at=paced(register))
    assert len(entries(register)) == 3 + 70


def test_warrants_do_not_fill_the_register(register: Register) -> None:
    """Renewed or of new nodes: a host that cuts connections gets one each time."""
    meet(register, PLAN, 1, epoch=1)
    for number in range(1, WARRANTS_AN_HOUR):
        at = START + number * MINUTE / 2
        grant(register, PLAN, 1 if number < 31 else 2, at=at)
    before, late = entries(register), START + 31 * MINUTE
    for node in (2, 3):
        for at in (late, late - 9 * MINUTE):
            code = protocol_code(partial(grant, register, PLAN, node, at=at))
            assert code == "warrant-limit"
    assert entries(register) == before
    assert register.warrants()[-1].epoch == 2
    # Neither another party's node nor a release is kept out by that.
    meet(register, PLAN, 2, epoch=2, at=late)
    release(register, PLAN, 2, at=late)
    grant(register, PLAN, 3, at=START + HOUR + MINUTE)


# Refusals


def refuse(register: Register, *, at_minute: int = 0, party: str = PARTY) -> None:
    showed = shown_by(PLAN.plan, key_of_node(1), party=party, at_party=PARTY)
    at = START + at_minute * MINUTE
    register.note_refusal(showed, collateral=None, error=WHY, at=at)


def test_a_refusal_is_recorded_with_its_reason(register: Register) -> None:
    refuse(register)
    showed = shown_by(PLAN.plan, key_of_node(1), party=PARTY)
    assert last(register) == NodeRefused(
        code="too-late", reason="the node is too late; got now", testimony=showed
    )


def test_refusals_do_not_fill_the_register(register: Register) -> None:
    for _ in range(REFUSALS_AN_HOUR + 5):
        refuse(register)
    assert kinds(register).count("node-refused") == REFUSALS_AN_HOUR
    refuse(register, party="bob")
    refuse(register, at_minute=61)
    assert kinds(register).count("node-refused") == REFUSALS_AN_HOUR + 2


def test_a_clock_that_went_back_does_not_hinder_a_refusals_record(
    register: Register,
) -> None:
    refuse(register, at_minute=-60)
    assert kinds(register)[-1] == "node-refused"


# Nodes of other parties


def test_another_partys_node_is_remembered_and_recorded_once(
    register: Register, path: Path
) -> None:
    terms = meet(register, PLAN, 7, epoch=3)
    noted = last(register)
    assert isinstance(noted, WarrantNoted)
    assert noted.testimony.warrant is not None
    assert noted.testimony.warrant.terms == terms
    meet(register, PLAN, 7, epoch=3, life=2 * LIFE)
    assert kinds(register).count("warrant-noted") == 1
    (row,) = register.foreign_warrants()
    assert (row.party, row.epoch, row.tls_key) == ("bob", 3, key_of_node(7))
    assert row.expires_at == int((START + 2 * LIFE).timestamp())
    assert register.warrants()[0].party == PARTY
    register.close()
    with Register.open(path) as again:
        assert again.foreign_warrants() == (row,)
        code = code_of(lambda: meet(again, PLAN, 6, epoch=2))
        assert code == "epoch-old"


def test_an_older_node_of_another_party_or_a_second_one_is_refused(
    register: Register,
) -> None:
    meet(register, PLAN, 7, epoch=3)
    assert code_of(lambda: meet(register, PLAN, 6, epoch=2)) == "epoch-old"
    assert code_of(lambda: meet(register, PLAN, 8, epoch=3)) == "epoch-forked"
    meet(register, PLAN, 8, epoch=4)
    assert code_of(lambda: meet(register, PLAN, 7, epoch=3)) == "epoch-old"
    assert register.check_node(PLAN.hash, party="bob", tls_key=key_of_node(8)) == 4
    gone = partial(register.check_node, PLAN.hash, party="bob")
    assert code_of(gone, tls_key=key_of_node(7)) == "warrant-superseded"


def test_another_partys_node_does_not_go_over_to_another_plan(
    register: Register,
) -> None:
    meet(register, PLAN, 7, epoch=3)
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    code = code_of(lambda: meet(register, successor, 7, epoch=3))
    assert code == "warrant-other-plan"
    meet(register, successor, 8, epoch=4)


def test_nodes_of_other_parties_do_not_fill_the_register(register: Register) -> None:
    for epoch in range(1, WARRANTS_AN_HOUR + 1):
        meet(register, PLAN, epoch, epoch=epoch)
    before = entries(register)
    new = partial(meet, register, PLAN, 99, epoch=99)
    assert protocol_code(new) == "warrant-limit"
    # A node that is known takes no room, so it is met as often as it comes.
    newest = WARRANTS_AN_HOUR
    meet(register, PLAN, newest, epoch=newest, life=2 * LIFE)
    assert entries(register) == before
    (row,) = register.foreign_warrants()
    assert row.epoch == newest
    meet(register, PLAN, 99, epoch=99, at=START + HOUR + MINUTE)


@pytest.mark.parametrize("left", [-1, 0, 1])
def test_a_node_is_not_noted_with_a_warrant_that_is_almost_over(
    register: Register, left: int
) -> None:
    """It held when it was verified; whoever reads the record has the record's time."""
    meet(register, PLAN, 6, epoch=2)
    before, rows = entries(register), register.foreign_warrants()
    at = START + LIFE - timedelta(seconds=left)
    for node, epoch in ((6, 2), (7, 3)):
        late = partial(meet, register, PLAN, node, epoch=epoch, at=at)
        assert code_of(late) == "warrant-expired"
    assert (entries(register), register.foreign_warrants()) == (before, rows)
    meet(register, PLAN, 7, epoch=3, at=START + LIFE - timedelta(seconds=2))


def test_a_warrant_holds_at_the_time_of_its_record_after_a_clock_went_back(
    register: Register,
) -> None:
    meet(register, PLAN, 7, epoch=3, life=2 * LIFE)
    deposit(register, PLAN, 1, mark_of(1), at=START + LIFE - MINUTE)
    refuse(register, at_minute=12 * 60 + 1)
    early = START + LIFE - 2 * MINUTE
    for act in (
        partial(meet, register, PLAN, 8, epoch=4),
        partial(release, register, PLAN, 1),
    ):
        assert code_of(partial(act, at=early)) == "warrant-expired"
    release(register, PLAN, 7, party="bob", at=early)


def test_an_epoch_is_one_process_with_its_own_encryption_key(
    register: Register,
) -> None:
    meet(register, PLAN, 7, epoch=3)
    before = entries(register)

    def other_key(party: str, node: int) -> Testimony:
        key = key_of_node(node)
        showed = shown_by(PLAN.plan, key, party=party, at_party=PARTY)
        words = msgspec.structs.replace(showed.said, client_encryption_key=bytes(32))
        return msgspec.structs.replace(showed, said=words)

    noted = last(register)
    assert isinstance(noted, WarrantNoted)
    theirs = msgspec.structs.replace(
        other_key("bob", 7), warrant=noted.testimony.warrant
    )
    for act in (
        partial(register.grant, other_key(PARTY, 1), life=LIFE),
        partial(register.note_foreign_warrant, theirs),
    ):
        code = code_of(partial(act, collateral=None, at=START))
        assert code == "encryption-key-differs"
    for party, node in ((PARTY, 1), ("bob", 7)):
        there = dataclasses.replace(
            transcript_of(PLAN.plan, key_of_node(node), party=party, at_party=PARTY),
            client_encryption_key=bytes(32),
        )
        ask = partial(register.release, there, key_ids=("sha256:b",), at=START)
        assert code_of(ask) == "encryption-key-differs"
    assert entries(register) == before
    # The next process has its own.
    assert (
        register.grant(other_key(PARTY, 2), collateral=None, at=START, life=LIFE).epoch
        == 2
    )


def test_nobody_is_noted_under_a_plan_that_is_not_in_force(register: Register) -> None:
    register.withdraw(PLAN.hash, at=START)
    code = code_of(lambda: meet(register, PLAN, 7, epoch=3))
    assert code == "plan-withdrawn"
    assert register.foreign_warrants() == ()


# Releases


def test_a_release_is_recorded_with_who_got_what(register: Register) -> None:
    assert release(register, PLAN, 1, key_ids=("sha256:b", "age1c")) == 1
    assert last(register) == KeyReleased(
        run_id="blobs/a",
        plan_hash=PLAN.hash,
        role="worker",
        party=PARTY,
        epoch=1,
        tls_key_sha256=key_digest(key_of_node(1)).hex(),
        encryption_key=digest_of("encryption"),
        key_ids=("sha256:b", "age1c"),
    )
    meet(register, PLAN, 7, epoch=3)
    assert release(register, PLAN, 7, party="bob") == 3
    given = last(register)
    assert isinstance(given, KeyReleased)
    assert (given.party, given.epoch) == ("bob", 3)


@pytest.mark.parametrize("party", [PARTY, "bob"])
def test_keys_are_for_the_newest_node_alone(register: Register, party: str) -> None:
    if party == "bob":
        code = code_of(lambda: release(register, PLAN, 1, party=party))
        assert code == "warrant-superseded"
        meet(register, PLAN, 1, epoch=1)
        meet(register, PLAN, 2, epoch=2)
    else:
        grant(register, PLAN, 2)
    code = code_of(lambda: release(register, PLAN, 1, party=party))
    assert code == "warrant-superseded"
    assert release(register, PLAN, 2, party=party) == 2
    code = code_of(lambda: release(register, PLAN, 3, party=party))
    assert code == "warrant-superseded"


def test_nothing_is_released_without_a_consent_in_force(register: Register) -> None:
    other = signed_plan(run="b")
    assert code_of(lambda: release(register, other, 1)) == "plan-not-consented"
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    assert code_of(lambda: release(register, PLAN, 1)) == "plan-superseded"
    assert code_of(lambda: release(register, successor, 1)) == "warrant-other-plan"
    register.withdraw(successor.hash, at=START)
    assert code_of(lambda: release(register, successor, 1)) == "plan-withdrawn"


def test_nothing_is_released_after_a_warrant_or_before_the_newest_time(
    register: Register,
) -> None:
    meet(register, PLAN, 7, epoch=3)
    for party, node in ((PARTY, 1), ("bob", 7)):
        act = partial(release, register, PLAN, node, party=party)
        assert act(at=START + LIFE - timedelta(seconds=1))
        assert code_of(act, at=START + LIFE) == "warrant-expired"
        assert code_of(act, at=START - 11 * MINUTE) == "clock-behind"


def test_releases_are_not_more_than_a_node_needs(register: Register) -> None:
    meet(register, PLAN, 7, epoch=3)
    for minute in range(RELEASES_AN_HOUR):
        release(register, PLAN, 1, at=START + minute * MINUTE / 2)
    late = START + 31 * MINUTE
    assert protocol_code(lambda: release(register, PLAN, 1, at=late)) == (
        "release-limit"
    )
    # Neither a new node of the party nor a clock set back makes room.
    grant(register, PLAN, 2, at=late)
    for at in (late, late - 9 * MINUTE):
        code = protocol_code(partial(release, register, PLAN, 2, at=at))
        assert code == "release-limit"
    release(register, PLAN, 7, party="bob", at=late)
    release(register, PLAN, 2, at=START + HOUR + MINUTE)


# The file


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET subject = 'x' WHERE seq = 1",
        "DELETE FROM records WHERE seq = 2",
        "DELETE FROM records",
    ],
)
def test_the_database_refuses_to_change_a_record(
    register: Register, path: Path, statement: str
) -> None:
    with raw(path) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    assert len(entries(register)) == 3


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET subject = 'x' WHERE seq = 1",
        "UPDATE records SET payload = x'00' WHERE seq = 1",
        "UPDATE records SET at_ms = 1 WHERE seq = 2",
        "DELETE FROM records WHERE seq = 2",
        "DELETE FROM records",
        "UPDATE foreign_warrants SET epoch = 1",
        "DELETE FROM foreign_warrants",
        "UPDATE register SET generation = 2",
    ],
)
def test_a_record_changed_by_force_is_found_at_the_next_start(
    register: Register, path: Path, statement: str
) -> None:
    meet(register, PLAN, 7, epoch=3)
    register.close()
    with raw(path) as connection:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        for _, definition in triggers:
            connection.execute(definition)
    with pytest.raises(StorageError) as caught:
        Register.open(path)
    assert caught.value.code == "register-damaged"


def test_the_format_without_keys_is_refused_with_what_to_do(
    register: Register, path: Path
) -> None:
    register.close()
    with raw(path) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(StorageError) as caught:
        Register.open(path)
    assert caught.value.code == "register-format"
    assert "custodian init" in caught.value.remedy
