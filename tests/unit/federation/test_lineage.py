"""A server's state against its log: both of one history, or neither is gone on from."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from tests.support.federation_in_memory import Federation

from cloister.errors import VerificationError
from cloister.federation.audit_past import Past
from cloister.federation.lineage import check_log, head_counters, head_of
from cloister.plan.plan import Plan
from cloister.plan.sections import Predecessor
from cloister.storage.mirror.subject import Kept

STATE, OTHER = b"\1" * 32, b"\2" * 32
HEAD, LATER = bytes(range(32)), b"\xff" * 32


def kept(number: int, *, head: bytes | None = HEAD) -> Kept:
    return Kept(
        round=number,
        counters=head_counters(head if number else None),
        digest=STATE,
        slot=0,
    )


def log(
    completed: int | None,
    *,
    states: dict[int, bytes] | None = None,
    sent: dict[int, bytes] | None = None,
) -> Past:
    """Returns what a log holds; each round in it went out with `HEAD`."""
    known = dict.fromkeys(range(1, (completed or 0) + 1), HEAD)
    if sent is not None:
        known = sent
    return Past(
        plan_hash=None,
        collateral=frozenset(),
        heads=(),
        newest={},
        newest_at=None,
        completed=completed,
        states={number: it.hex() for number, it in (states or {}).items()},
        sent={number: it.hex() for number, it in known.items()},
        sealed=False,
    )


def amended(federation: Federation, number: int) -> Plan:
    digest = f"sha256:{STATE.hex()}"
    before = Predecessor(plan=digest, state=digest, round=number)
    return msgspec.structs.replace(federation.plan, predecessor=before)


@pytest.mark.parametrize("head", [HEAD, LATER, bytes(32)])
def test_a_head_is_sealed_with_a_state_as_numbers(head: bytes) -> None:
    counters = head_counters(head)
    assert len(counters) == 4
    assert all(0 <= it < 2**64 for it in counters.values())
    assert head_of(kept(3, head=head)) == head


def test_a_state_before_the_first_round_has_no_head() -> None:
    assert head_counters(None) == {}
    assert head_of(kept(0)) is None
    some = dict(head_counters(HEAD))
    some.popitem()
    assert head_of(replace(kept(3), counters=some)) is None


@pytest.mark.parametrize(
    ("state", "past"),
    [
        (kept(0), log(None)),
        (kept(0), log(0, states={0: STATE})),
        (kept(3), log(3)),
        (kept(3), log(3, states={3: STATE})),
        # Rounds that the state lost.
        (kept(3), log(4, states={4: OTHER})),
    ],
)
def test_a_log_of_the_states_own_history_is_gone_on_with(
    federation: Federation, state: Kept, past: Past
) -> None:
    check_log(state, federation.plan, past)


def test_a_log_under_an_amended_plan_begins_after_the_state_that_it_takes_over(
    federation: Federation,
) -> None:
    plan = amended(federation, 5)
    check_log(kept(5), plan, log(None))
    check_log(kept(5), plan, log(5, sent={}, states={5: STATE}))
    check_log(kept(6), plan, log(6, sent={6: HEAD}))


@pytest.mark.parametrize("number", [None, 0, 2])
def test_a_log_that_lacks_rounds_which_the_state_has_was_cut(
    federation: Federation, number: int | None
) -> None:
    with pytest.raises(VerificationError) as caught:
        check_log(kept(3), federation.plan, log(number))
    assert caught.value.code == "audit-cut"
    assert (caught.value.expected, caught.value.got) == (
        "3 rounds",
        f"{number or 0} rounds",
    )


@pytest.mark.parametrize(
    ("state", "past"),
    [
        # A run that was begun anew, with the log of before.
        (kept(0), log(0, states={0: OTHER})),
        (kept(0), log(3, states={0: OTHER})),
        # Another server made this round.
        (kept(3), log(3, states={3: OTHER})),
        (kept(3), log(3, sent={3: LATER})),
        (kept(3), log(4, sent={2: HEAD, 3: LATER, 4: HEAD})),
        # What shows nothing is no history.
        (kept(3), log(3, sent={})),
        (kept(3, head=None), log(3)),
    ],
)
def test_a_log_of_another_history_than_the_states_is_refused(
    federation: Federation, state: Kept, past: Past
) -> None:
    with pytest.raises(VerificationError) as caught:
        check_log(state, federation.plan, past)
    assert caught.value.code == "audit-state"
    assert "--fresh" in caught.value.remedy
