from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.refusals import code_of
from tests.support.registers import (
    KEYS,
    LIFE,
    MINUTE,
    PARTY,
    START,
    SignedPlan,
    content_of,
    deposit,
    digest_of,
    forge,
    grant,
    key_of_node,
    mark_of,
    shown_by,
    signed,
    signed_plan,
    successor_of,
)

from cloister.custody.register import Register
from cloister.custody.register_clock import MAX_LIFE
from cloister.custody.register_rows import PlanRow
from cloister.custody.register_tables import Rows
from cloister.custody.register_warrants import terms_in
from cloister.errors import ConfigError, ProtocolError, StorageError
from cloister.plan.consent import parse_consent, sign_consent
from cloister.plan.plan import PlanHash
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import Spki
from cloister.ratls.warrant import WarrantTerms

PLAN = signed_plan()
OTHER_PLAN = signed_plan(seed=8)
OTHER_RUN = signed_plan(run="b")
SECONDS = int(START.timestamp())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "custodian.sqlite"


@pytest.fixture
def register(path: Path) -> Iterator[Register]:
    with Register.create(path, party=PARTY) as register:
        yield register


def adopt(register: Register, plan: SignedPlan, *, at: Any = START) -> None:
    assert register.adopt(plan.text, plan.consent, at=at) == plan.plan


def config_code(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        act()
    return caught.value.code


def states(register: Register) -> dict[PlanHash, str]:
    return {row.plan_hash: row.state for row in register.plans()}


# Consents


def test_a_new_register_knows_nothing(register: Register) -> None:
    assert register.party == PARTY
    assert content_of(register) == ((), (), ())
    assert register.mark("blobs/a") is None
    assert code_of(lambda: register.plan(PLAN.hash)) == "plan-not-consented"
    assert code_of(lambda: grant(register, PLAN, 1)) == "plan-not-consented"
    assert (
        code_of(lambda: deposit(register, PLAN, 1, mark_of(1))) == "plan-not-consented"
    )


def test_an_adopted_plan_is_known_by_its_hash(register: Register) -> None:
    adopt(register, PLAN)
    assert register.plan(PLAN.hash) == PLAN.plan
    (row,) = register.plans()
    assert (row.plan_hash, row.run_id) == (PLAN.hash, "blobs/a")
    assert (row.state, row.at) == ("active", SECONDS)
    assert row.plan == PLAN.text
    assert parse_consent(row.consent) == PLAN.consent


def test_everything_is_there_again_after_a_restart(
    register: Register, path: Path
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3))
    before = content_of(register)
    register.close()
    with Register.open(path) as again:
        assert content_of(again) == before
        assert again.mark("blobs/a") == mark_of(3)
        assert grant(again, PLAN, 2).epoch == 2


def test_another_spelling_of_an_active_plan_changes_nothing(
    register: Register,
) -> None:
    adopt(register, PLAN)
    before = content_of(register)
    adopt(register, signed(b"# the same\n" + PLAN.text, at=START + MINUTE))
    assert content_of(register) == before


def test_plans_of_two_runs_lie_side_by_side(register: Register) -> None:
    adopt(register, PLAN)
    adopt(register, OTHER_RUN)
    assert grant(register, PLAN, 1).epoch == 1
    assert grant(register, OTHER_RUN, 2).epoch == 1
    assert grant(register, PLAN, 3).epoch == 2
    assert grant(register, OTHER_RUN, 1).epoch == 2


def test_a_plan_without_the_party_is_not_adopted(path: Path) -> None:
    with Register.create(path, party="carol") as register:
        assert (
            config_code(lambda: register.adopt(PLAN.text, PLAN.consent, at=START))
            == "party-unknown"
        )
        assert register.plans() == ()


def test_a_consent_of_another_party_is_not_adopted(register: Register) -> None:
    bobs = signed_plan(party="bob")
    assert (
        code_of(lambda: register.adopt(bobs.text, bobs.consent, at=START))
        == "consent-foreign"
    )
    assert register.plans() == ()


def test_a_consent_to_another_plan_is_not_adopted(register: Register) -> None:
    assert (
        code_of(lambda: register.adopt(OTHER_PLAN.text, PLAN.consent, at=START))
        == "consent-foreign"
    )
    assert register.plans() == ()


def test_a_consent_signed_by_another_key_is_not_adopted(register: Register) -> None:
    theirs = sign_consent(PLAN.plan, party="bob", key=KEYS["bob"], at=START)
    forged = msgspec.structs.replace(PLAN.consent, signature=theirs.signature)
    assert (
        code_of(lambda: register.adopt(PLAN.text, forged, at=START))
        == "consent-signature"
    )
    assert register.plans() == ()


def test_a_consent_from_the_future_is_not_adopted(register: Register) -> None:
    early = START - 11 * MINUTE
    assert (
        code_of(lambda: register.adopt(PLAN.text, PLAN.consent, at=early))
        == "consent-future"
    )
    assert register.plans() == ()


def test_a_text_that_is_no_plan_is_not_adopted(register: Register) -> None:
    assert (
        config_code(lambda: register.adopt(b"plan = 1", PLAN.consent, at=START))
        == "value-invalid"
    )
    huge = PLAN.text + b"#" * 1024 * 1024
    assert (
        config_code(lambda: register.adopt(huge, PLAN.consent, at=START))
        == "file-too-large"
    )
    assert register.plans() == ()


def test_the_largest_plan_there_may_be_is_kept(register: Register) -> None:
    filled = PLAN.text + b"#" * (1024 * 1024 - len(PLAN.text))
    adopt(register, signed(filled))
    assert register.plans()[0].plan == filled


# One run, one history of plans


def test_before_any_warrant_another_plan_takes_the_place(register: Register) -> None:
    adopt(register, PLAN)
    adopt(register, OTHER_PLAN)
    assert states(register) == {PLAN.hash: "superseded", OTHER_PLAN.hash: "active"}
    assert code_of(lambda: register.plan(PLAN.hash)) == "plan-superseded"
    assert code_of(lambda: grant(register, PLAN, 1)) == "plan-superseded"
    # and back again, for nothing happened yet
    adopt(register, PLAN)
    assert states(register) == {PLAN.hash: "active", OTHER_PLAN.hash: "superseded"}


@pytest.mark.parametrize("withdrawn", [False, True])
def test_after_a_warrant_the_run_is_taken(
    register: Register, *, withdrawn: bool
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    if withdrawn:
        register.withdraw(PLAN.hash, at=START)
    before = content_of(register)
    assert config_code(lambda: adopt(register, OTHER_PLAN)) == "run-taken"
    assert content_of(register) == before


def test_a_plan_that_was_replaced_does_not_come_back_after_a_warrant(
    register: Register,
) -> None:
    adopt(register, PLAN)
    adopt(register, OTHER_PLAN)
    grant(register, OTHER_PLAN, 1)
    assert config_code(lambda: adopt(register, PLAN)) == "run-taken"
    assert register.plan(OTHER_PLAN.hash) == OTHER_PLAN.plan


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_successor_goes_on_from_the_mark(
    register: Register, *, withdrawn: bool
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3))
    if withdrawn:
        register.withdraw(PLAN.hash, at=START)
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    assert states(register) == {PLAN.hash: "superseded", successor.hash: "active"}
    assert register.mark("blobs/a") == mark_of(3)
    # Its nodes go on counting.
    assert grant(register, successor, 2).epoch == 2
    assert deposit(register, successor, 2, mark_of(4)) == mark_of(4)
    assert code_of(lambda: grant(register, PLAN, 3)) == "plan-superseded"


def test_a_successor_from_a_later_mark_is_taken(register: Register) -> None:
    """The custodians of two parties may know the run some rounds apart."""
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3))
    successor = successor_of(PLAN, mark_of(5))
    adopt(register, successor)
    assert register.plan(successor.hash) == successor.plan
    assert code_of(lambda: grant(register, PLAN, 2)) == "plan-superseded"


def test_a_run_whose_nodes_have_begun_no_round_is_amended(register: Register) -> None:
    """They were warranted: no other plan takes its place, but a successor does."""
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(0))
    successor = successor_of(PLAN, mark_of(0))
    adopt(register, successor)
    assert register.plan(successor.hash) == successor.plan
    grant(register, successor, 2)
    assert deposit(register, successor, 2, mark_of(1)) == mark_of(1)
    # A run that went on does not go back in the same way.
    again = successor_of(successor, mark_of(0))
    before = content_of(register)
    assert code_of(lambda: adopt(register, again)) == "amendment-state"
    assert content_of(register) == before


def test_a_server_deposits_marks_of_itself_alone(tmp_path: Path) -> None:
    plan = signed(PLAN.text, party="aggregator")
    with Register.create(tmp_path / "server.sqlite", party="aggregator") as register:
        adopt(register, plan)
        grant(register, plan, 1)
        own = msgspec.structs.replace(mark_of(3), server_key=key_digest(key_of_node(1)))
        for foreign in (
            mark_of(3),
            msgspec.structs.replace(own, server_epoch=2),
        ):
            refused = code_of(partial(deposit, register, plan, 1, foreign))
            assert refused == "mark-foreign"
        assert register.mark("blobs/a") is None
        assert deposit(register, plan, 1, own) == own


@pytest.mark.parametrize("mark", [mark_of(2), mark_of(3, "other")])
def test_a_successor_from_another_state_is_refused(
    register: Register, mark: Any
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3))
    before = content_of(register)
    successor = successor_of(PLAN, mark)
    assert code_of(lambda: adopt(register, successor)) == "amendment-state"
    assert content_of(register) == before


def test_without_a_mark_a_successor_cannot_be_compared(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    assert register.plan(successor.hash) == successor.plan


def test_a_successor_of_another_plan_is_refused(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    foreign = successor_of(OTHER_PLAN, mark_of(3))
    assert code_of(lambda: adopt(register, foreign)) == "amendment-predecessor"
    assert states(register) == {PLAN.hash: "active"}


def test_an_amendment_that_changes_too_much_is_refused(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    text = successor_of(PLAN, mark_of(3)).text.replace(b'"seed" = 7', b'"seed" = 8')
    assert code_of(lambda: adopt(register, signed(text))) == "amendment-training"
    assert states(register) == {PLAN.hash: "active"}


def test_a_successor_of_a_plan_never_seen_is_a_first_plan(register: Register) -> None:
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    assert states(register) == {successor.hash: "active"}


# Withdrawing


def test_a_withdrawn_plan_serves_nobody(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    register.withdraw(PLAN.hash, at=START + MINUTE)
    assert code_of(lambda: register.plan(PLAN.hash)) == "plan-withdrawn"
    assert code_of(lambda: grant(register, PLAN, 1)) == "plan-withdrawn"
    assert code_of(lambda: deposit(register, PLAN, 1, mark_of(1))) == "plan-withdrawn"
    assert register.plans()[0].at == SECONDS + 60
    assert register.marks() == ()


def test_withdrawing_twice_is_withdrawing_once(register: Register) -> None:
    adopt(register, PLAN)
    register.withdraw(PLAN.hash, at=START)
    before = content_of(register)
    register.withdraw(PLAN.hash, at=START + MINUTE)
    assert content_of(register) == before


def test_a_withdrawn_plan_is_active_when_signed_again(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    register.withdraw(PLAN.hash, at=START)
    again = signed(PLAN.text, at=START + MINUTE)
    adopt(register, again, at=START + MINUTE)
    assert states(register) == {PLAN.hash: "active"}
    assert parse_consent(register.plans()[0].consent) == again.consent
    assert grant(register, PLAN, 2, at=START + MINUTE).epoch == 2


def test_what_was_never_adopted_is_not_withdrawn(register: Register) -> None:
    code = config_code(lambda: register.withdraw(PLAN.hash, at=START))
    assert code == "plan-not-consented"


def test_withdrawing_a_superseded_plan_is_refused_for_its_successor_is_in_force(
    register: Register,
) -> None:
    adopt(register, PLAN)
    adopt(register, OTHER_PLAN)
    code = config_code(lambda: register.withdraw(PLAN.hash, at=START))
    assert code == "plan-superseded"
    assert states(register)[OTHER_PLAN.hash] == "active"


def test_a_clock_that_went_back_does_not_hinder_withdrawing(
    register: Register,
) -> None:
    adopt(register, PLAN)
    register.withdraw(PLAN.hash, at=START - timedelta(days=400))
    assert states(register) == {PLAN.hash: "withdrawn"}
    # What it was then is no reason to distrust the consent.
    adopt(register, successor_of(PLAN, mark_of(1)))


# Epochs


def test_terms_name_everything_the_party_signs(register: Register) -> None:
    adopt(register, PLAN)
    assert grant(register, PLAN, 1, at=START + timedelta(seconds=7.9)) == WarrantTerms(
        run_id="blobs/a",
        plan_hash=PLAN.hash,
        role="worker",
        party=PARTY,
        tls_key=key_of_node(1),
        epoch=1,
        issued_at=SECONDS + 7,
        expires_at=SECONDS + 7 + int(LIFE.total_seconds()),
    )


def test_the_role_is_the_plans(path: Path) -> None:
    plan = signed_plan(party="aggregator")
    with Register.create(path, party="aggregator") as register:
        adopt(register, plan)
        assert grant(register, plan, 1).role == "server"
        own = msgspec.structs.replace(mark_of(1), server_key=key_digest(key_of_node(1)))
        assert deposit(register, plan, 1, own) == own
        assert register.marks()[0].role == "server"


def test_a_renewed_key_keeps_its_epoch(register: Register) -> None:
    adopt(register, PLAN)
    first = grant(register, PLAN, 1)
    later = START + timedelta(hours=11)
    renewed = grant(register, PLAN, 1, at=later, life=timedelta(hours=1))
    assert renewed.epoch == first.epoch == 1
    assert renewed.issued_at == SECONDS + 11 * 3600
    assert renewed.expires_at == SECONDS + 12 * 3600
    (row,) = register.warrants()
    assert terms_in(row) == renewed


def test_a_new_key_gets_the_next_epoch(register: Register) -> None:
    adopt(register, PLAN)
    assert [grant(register, PLAN, node).epoch for node in range(1, 6)] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert [row.epoch for row in register.warrants()] == [1, 2, 3, 4, 5]


def test_a_former_key_is_refused_for_ever(register: Register) -> None:
    adopt(register, PLAN)
    for node in (1, 2, 3):
        grant(register, PLAN, node)
    before = content_of(register)
    for node in (1, 2):
        assert code_of(partial(grant, register, PLAN, node)) == "warrant-superseded"
    assert content_of(register) == before
    assert grant(register, PLAN, 3).epoch == 3


def test_a_former_key_is_refused_under_a_successor_too(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    grant(register, PLAN, 2)
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    assert code_of(lambda: grant(register, successor, 1)) == "warrant-superseded"


def test_a_node_does_not_go_over_to_another_plan(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    successor = successor_of(PLAN, mark_of(3))
    adopt(register, successor)
    assert code_of(lambda: grant(register, successor, 1)) == "warrant-other-plan"
    code = code_of(lambda: deposit(register, successor, 1, mark_of(4)))
    assert code == "warrant-other-plan"
    assert grant(register, successor, 2).epoch == 2


@pytest.mark.parametrize("size", [0, 32, 90, 92])
def test_a_key_of_another_size_is_refused(register: Register, size: int) -> None:
    adopt(register, PLAN)
    shown = shown_by(PLAN.plan, Spki(bytes(size)), party=PARTY)
    with pytest.raises(ProtocolError) as caught:
        register.grant(shown, collateral=None, at=START, life=LIFE)
    assert caught.value.code == "tls-key-size"
    assert register.warrants() == ()


@pytest.mark.parametrize(
    "life",
    [timedelta(0), timedelta(milliseconds=999), -LIFE, MAX_LIFE + timedelta(seconds=1)],
)
def test_a_life_that_is_none_is_refused(register: Register, life: timedelta) -> None:
    adopt(register, PLAN)
    assert config_code(lambda: grant(register, PLAN, 1, life=life)) == "warrant-life"
    assert register.warrants() == ()


def test_the_longest_life_is_a_week(register: Register) -> None:
    adopt(register, PLAN)
    terms = grant(register, PLAN, 1, life=MAX_LIFE)
    assert terms.expires_at - terms.issued_at == 7 * 24 * 3600


# The clock


def test_a_clock_that_went_back_is_refused(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    early = START - 10 * MINUTE - timedelta(seconds=1)
    before = content_of(register)
    successor = successor_of(PLAN, mark_of(1), at=early)
    for act in (
        lambda: grant(register, PLAN, 1, at=early),
        lambda: grant(register, PLAN, 2, at=early),
        lambda: deposit(register, PLAN, 1, mark_of(1), at=early),
        lambda: register.adopt(successor.text, successor.consent, at=early),
    ):
        assert code_of(act) == "clock-behind"
    assert content_of(register) == before


def test_ten_minutes_are_forgiven(register: Register) -> None:
    adopt(register, PLAN)
    assert grant(register, PLAN, 1, at=START - 10 * MINUTE).epoch == 1


def test_ten_minutes_are_not_forgiven_again_and_again(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1, at=START - 9 * MINUTE)
    assert code_of(lambda: grant(register, PLAN, 1, at=START - 11 * MINUTE)) == (
        "clock-behind"
    )


@pytest.mark.parametrize("what", ["adopt", "grant", "deposit", "withdraw", "rewind"])
def test_the_newest_time_is_remembered_whatever_wrote_it(
    register: Register, path: Path, what: str
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    later = START + timedelta(hours=1)
    if what == "adopt":
        adopt(register, OTHER_RUN, at=later)
    elif what == "grant":
        grant(register, PLAN, 1, at=later)
    elif what == "withdraw":
        adopt(register, OTHER_RUN)
        register.withdraw(OTHER_RUN.hash, at=later)
    else:
        deposit(register, PLAN, 1, mark_of(1), at=later)
    if what == "rewind":
        register.rewind("blobs/a", at=START)
    register.close()
    with Register.open(path) as again:
        assert code_of(lambda: grant(again, PLAN, 1)) == "clock-behind"


def test_a_time_before_all_times_is_refused(register: Register) -> None:
    dawn = datetime(1970, 1, 1, tzinfo=UTC)
    plan = signed_plan(at=dawn)
    act = partial(register.adopt, plan.text, plan.consent, at=dawn - MINUTE)
    assert code_of(act) == "clock-behind"
    assert register.plans() == ()


# Marks


def test_a_mark_is_what_was_deposited_last(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    for mark in (mark_of(0), mark_of(1), mark_of(5)):
        assert deposit(register, PLAN, 1, mark) == mark
        assert register.mark("blobs/a") == mark
    assert register.mark("blobs/b") is None
    (row,) = register.marks()
    assert (row.mark, row.run_id, row.role, row.party, row.at) == (
        mark_of(5),
        "blobs/a",
        "worker",
        PARTY,
        SECONDS,
    )


def test_the_same_mark_again_is_no_contradiction(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3))
    deposit(register, PLAN, 1, mark_of(3), at=START + MINUTE)
    assert register.marks()[0].at == SECONDS + 60


def test_an_audit_head_is_kept(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    mark = msgspec.structs.replace(mark_of(3), audit_head=digest_of("head"))
    deposit(register, PLAN, 1, mark)
    assert register.mark("blobs/a") == mark


@pytest.mark.parametrize(
    ("mark", "code"),
    [
        (mark_of(4, epoch=1), "server-epoch-old"),
        (mark_of(4, epoch=2, server="second"), "server-forked"),
        (mark_of(2, epoch=2), "mark-old"),
        (mark_of(3, "other", epoch=2), "mark-forked"),
        # A newer server with an older state is the roll-back itself.
        (mark_of(2, epoch=3, server="second"), "mark-old"),
        (mark_of(3, "other", epoch=3, server="second"), "mark-forked"),
    ],
)
def test_what_contradicts_the_mark_is_refused(
    register: Register, mark: Any, code: str
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3, epoch=2))
    before = content_of(register)
    assert code_of(lambda: deposit(register, PLAN, 1, mark)) == code
    assert content_of(register) == before


@pytest.mark.parametrize("completed", [3, 4])
def test_a_newer_server_goes_on_from_the_newest_state(
    register: Register, completed: int
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(3, epoch=2))
    newer = mark_of(completed, epoch=3, server="second")
    assert deposit(register, PLAN, 1, newer) == newer


def test_only_the_newest_node_deposits(register: Register) -> None:
    adopt(register, PLAN)
    code = code_of(lambda: deposit(register, PLAN, 1, mark_of(1)))
    assert code == "warrant-superseded"
    grant(register, PLAN, 1)
    grant(register, PLAN, 2)
    for node in (1, 3):
        code = code_of(partial(deposit, register, PLAN, node, mark_of(1)))
        assert code == "warrant-superseded"
    assert register.marks() == ()


def test_a_rewound_run_may_go_back_but_its_epochs_do_not(register: Register) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(5, epoch=4))
    assert register.rewind("blobs/a", at=START) == mark_of(5, epoch=4)
    assert register.mark("blobs/a") is None
    assert register.marks() == ()
    assert register.rewind("blobs/a", at=START) is None
    deposit(register, PLAN, 1, mark_of(2, "other", epoch=4))
    assert register.mark("blobs/a") == mark_of(2, "other", epoch=4)
    assert grant(register, PLAN, 2).epoch == 2


@pytest.mark.parametrize(
    ("mark", "code"),
    [
        (mark_of(6, epoch=3), "server-epoch-old"),
        (mark_of(2, "other", epoch=1), "server-epoch-old"),
        (mark_of(6, epoch=4, server="second"), "server-forked"),
    ],
)
def test_a_rewound_run_still_knows_its_newest_server(
    register: Register, path: Path, mark: Any, code: str
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(5, epoch=4))
    register.rewind("blobs/a", at=START)
    assert code_of(lambda: deposit(register, PLAN, 1, mark)) == code
    assert register.marks() == ()
    register.close()
    with Register.open(path) as again:
        assert code_of(lambda: deposit(again, PLAN, 1, mark)) == code
        newer = mark_of(0, "other", epoch=5, server="second")
        assert deposit(again, PLAN, 1, newer) == newer


def test_a_successor_of_a_rewound_run_goes_on_from_anywhere(
    register: Register,
) -> None:
    adopt(register, PLAN)
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(5))
    behind = successor_of(PLAN, mark_of(2))
    act = partial(register.adopt, behind.text, behind.consent, at=START)
    assert code_of(act) == "amendment-state"
    register.rewind("blobs/a", at=START)
    adopt(register, behind)


def test_a_run_nobody_knows_is_not_rewound(register: Register) -> None:
    adopt(register, PLAN)
    assert config_code(lambda: register.rewind("blobs/b", at=START)) == "run-unknown"


# What is read back is checked again


def test_a_closed_register_is_a_mistake_of_the_program(register: Register) -> None:
    register.close()
    register.close()
    with pytest.raises(RuntimeError):
        register.plans()


def forged_plan(path: Path, **changes: Any) -> None:
    def change(rows: Rows) -> None:
        (row,) = rows.plans()
        forged: PlanRow = dataclasses.replace(row, **changes)
        rows.put(forged, instead_of=row, at=0)

    forge(path, change)


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": OTHER_PLAN.text},
        {"plan": b"plan = 1"},
        {"plan": b"\xff"},
        {"run_id": "blobs/b"},
        {"consent": b"{}"},
        {"consent": msgspec.json.encode(OTHER_PLAN.consent)},
        {"consent": msgspec.json.encode(signed_plan(party="bob").consent)},
        {
            "consent": msgspec.json.encode(
                msgspec.structs.replace(PLAN.consent, signature=128 * "0")
            )
        },
    ],
)
def test_a_plan_changed_with_all_hashes_made_anew_is_refused(
    register: Register, path: Path, changes: dict[str, Any]
) -> None:
    adopt(register, PLAN)
    forged_plan(path, **changes)
    for act in (
        lambda: register.plan(PLAN.hash),
        lambda: grant(register, PLAN, 1),
        lambda: deposit(register, PLAN, 1, mark_of(1)),
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.code == "register-damaged"
    assert register.warrants() == ()


def test_a_plan_is_parsed_and_verified_once_and_not_for_every_hello(
    register: Register, path: Path
) -> None:
    adopt(register, PLAN)
    first = register.plan(PLAN.hash)
    assert register.plan(PLAN.hash) is first
    grant(register, PLAN, 1)
    deposit(register, PLAN, 1, mark_of(1))
    assert register.plan(PLAN.hash) is first
    # A row that was written anew is another one, though the plan in it is the same.
    register.withdraw(PLAN.hash, at=START)
    assert code_of(lambda: register.plan(PLAN.hash)) == "plan-withdrawn"
    adopt(register, signed(b"# the same\n" + PLAN.text, at=START + MINUTE))
    again = register.plan(PLAN.hash)
    assert again == first
    assert again is not first
    # And one that was changed behind the register's back is read as what it is.
    forged_plan(path, plan=OTHER_PLAN.text)
    with pytest.raises(StorageError) as caught:
        register.plan(PLAN.hash)
    assert caught.value.code == "register-damaged"


def test_who_can_write_the_file_can_undo_a_withdrawal_and_no_more(
    register: Register, path: Path
) -> None:
    # Said plainly: the file is guarded by its mode alone. What the writer cannot do
    # is to make the party's signature for another plan.
    adopt(register, PLAN)
    register.withdraw(PLAN.hash, at=START)
    forged_plan(path, state="active")
    assert register.plan(PLAN.hash) == PLAN.plan
