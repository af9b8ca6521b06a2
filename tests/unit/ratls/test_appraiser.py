from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.support.asked_collateral import asking
from tests.support.federation_in_memory import (
    START,
    Federation,
    HandClock,
    make_federation,
)
from tests.support.published_collateral import (
    collateral_path,
    out_of_date,
    publish,
    revoking,
    up_to_date,
)
from tests.support.refusals import code_of

from cloister.errors import ConfigError, StorageError
from cloister.ratls.appraiser import Appraiser, judge_with
from cloister.ratls.clock import FlooredClock

BOUND = bytes(range(64))
DAY = timedelta(days=1)
# What a federation in memory begins with.
ISSUED = START - DAY


class Counter:
    """Seconds that somebody counts."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def own(tmp_path: Path) -> Federation:
    """A federation whose collateral this test may replace."""
    return make_federation(tmp_path)


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def floored(clock: HandClock, counter: Counter) -> FlooredClock:
    return FlooredClock(clock, counter)


def appraise(
    appraiser: Appraiser, federation: Federation, quote: bytes
) -> Callable[[], object]:
    policy = federation.plan.policy_for("worker")
    return lambda: appraiser.appraise(quote, policy=policy, expected_report_data=BOUND)


def fetch(appraiser: Appraiser, quote: bytes) -> Callable[[], object]:
    return lambda: appraiser.fetch_collateral(quote, expected_report_data=BOUND)


@pytest.mark.parametrize("party", ["alice", "bob"])
def test_a_genuine_quote_for_this_exchange_is_accepted(
    federation: Federation, clock: HandClock, party: str
) -> None:
    appraiser = federation.appraiser(clock.floored())
    quote = federation.platform(party).quote(BOUND)
    verdict = appraiser.appraise(
        quote,
        policy=federation.plan.policy_for("worker"),
        expected_report_data=BOUND,
    )
    assert verdict.claims.report_data == BOUND
    assert verdict.claims == appraiser.verify(quote, expected_report_data=BOUND)


@pytest.mark.parametrize("party", ["alice", "bob"])
def test_a_verdict_comes_with_the_collateral_it_rests_on(
    federation: Federation, clock: HandClock, party: str
) -> None:
    appraiser = federation.appraiser(clock.floored())
    quote = federation.platform(party).quote(BOUND)
    policy = federation.plan.policy_for("worker")
    judged = appraiser.judge(quote, policy=policy, expected_report_data=BOUND)
    again = appraiser.appraise(quote, policy=policy, expected_report_data=BOUND)
    assert judged.verdict == again
    later = judge_with(
        quote,
        collateral=judged.collateral,
        policy=policy,
        expected_report_data=BOUND,
        root=federation.root.trust_root,
        at=START,
    )
    assert later == judged.verdict


def test_what_is_at_hand_is_judged_by_several_policies(
    federation: Federation,
) -> None:
    """As a custodian does, whose party has a policy of its own."""
    appraiser, source = asking(federation)
    quote = federation.platform("alice").quote(BOUND)
    collateral = appraiser.fetch_collateral(quote, expected_report_data=BOUND)
    claims = appraiser.verify_with(
        quote, collateral=collateral, expected_report_data=BOUND
    )
    assert claims == appraiser.verify(quote, expected_report_data=BOUND)
    replayed = federation.platform("alice").quote(bytes(64))
    code = code_of(
        appraiser.verify_with,
        replayed,
        collateral=collateral,
        expected_report_data=BOUND,
    )
    assert code == "report-data"
    assert source.asked == ["tdx", "tdx"]


def test_kept_collateral_is_judged_for_its_own_time(own: Federation) -> None:
    appraiser = own.appraiser(HandClock().floored())
    quote = own.platform("alice").quote(BOUND)
    policy = own.plan.policy_for("worker")
    kept = appraiser.judge(quote, policy=policy, expected_report_data=BOUND)
    publish(own, revoking("tdx", quote))

    def judge(at: datetime) -> object:
        return judge_with(
            quote,
            collateral=kept.collateral,
            policy=policy,
            expected_report_data=BOUND,
            root=own.root.trust_root,
            at=at,
        )

    assert judge(START) == kept.verdict
    assert code_of(judge, START + 365 * DAY).endswith("-expired")


def test_a_genuine_quote_for_anything_else_is_refused(
    federation: Federation, clock: HandClock
) -> None:
    appraiser = federation.appraiser(clock.floored())
    for data in (bytes(64), BOUND[:63] + b"\0", b"\1" + BOUND[1:]):
        quote = federation.platform("alice").quote(data)
        assert code_of(appraise(appraiser, federation, quote)) == "report-data"


def test_a_genuine_quote_that_the_policy_does_not_want_is_refused(
    federation: Federation, clock: HandClock
) -> None:
    appraiser = federation.appraiser(clock.floored())
    quote = federation.platform("aggregator").quote(BOUND)
    assert code_of(appraise(appraiser, federation, quote)) == "appraisal-measurement"
    # But genuine it is: whoever only verifies gets its claims.
    appraiser.verify(quote, expected_report_data=BOUND)


def test_bytes_that_are_no_quote_are_refused(
    federation: Federation, clock: HandClock
) -> None:
    appraiser = federation.appraiser(clock.floored())
    for junk in (b"", b"q", bytes(5000)):
        assert code_of(fetch(appraiser, junk)).startswith("quote")
        assert code_of(appraise(appraiser, federation, junk)).startswith("quote")


def test_verified_collateral_says_that_it_is_not_earlier(
    federation: Federation, clock: HandClock, floored: FlooredClock, counter: Counter
) -> None:
    """A host stops its clock: from the collateral's date on, time passes anyway."""
    appraiser = federation.appraiser(floored)
    counter.seconds += 2 * DAY.total_seconds()
    assert floored() == START
    appraiser.verify(
        federation.platform("alice").quote(BOUND), expected_report_data=BOUND
    )
    counter.seconds += 2 * DAY.total_seconds()
    assert floored() == ISSUED + 2 * DAY
    assert clock.now == START


def test_newer_collateral_raises_the_floor_further(
    own: Federation, floored: FlooredClock, counter: Counter
) -> None:
    appraiser = own.appraiser(floored)
    quote = own.platform("alice").quote(BOUND)
    appraiser.verify(quote, expected_report_data=BOUND)
    publish(own, up_to_date("tdx", at=START))
    appraiser.verify(quote, expected_report_data=BOUND)
    counter.seconds += DAY.total_seconds()
    # TCB info, identity and lists all count: the newest says what time it is.
    assert floored() == START + DAY


def test_collateral_of_the_future_raises_no_floor(
    own: Federation, floored: FlooredClock
) -> None:
    publish(own, up_to_date("tdx", at=START + DAY))
    quote = own.platform("alice").quote(BOUND)
    code = code_of(appraise(own.appraiser(floored), own, quote))
    assert code.endswith("-not-yet-valid")
    assert floored() == START


def test_a_host_that_sets_its_clock_back_revives_no_old_collateral(
    own: Federation, clock: HandClock, floored: FlooredClock
) -> None:
    appraiser = own.appraiser(floored)
    quote = own.platform("alice").quote(BOUND)
    appraise(appraiser, own, quote)()
    publish(own, up_to_date("tdx", at=START - 40 * DAY))
    clock.now = START - 35 * DAY
    assert code_of(appraise(appraiser, own, quote)).endswith("-expired")


@pytest.mark.parametrize("party", ["alice", "bob"])
def test_collateral_is_looked_at_anew_each_time(own: Federation, party: str) -> None:
    appraiser = own.appraiser(HandClock().floored())
    platform = own.platform(party)
    quote = platform.quote(BOUND)
    appraise(appraiser, own, quote)()
    publish(own, out_of_date(platform.tee))
    assert code_of(appraise(appraiser, own, quote)) == "appraisal-tcb-status"
    publish(own, revoking(platform.tee, quote))
    assert code_of(appraise(appraiser, own, quote)).endswith("revoked")
    publish(own, up_to_date(platform.tee))
    appraise(appraiser, own, quote)()


def test_collateral_that_cannot_be_had_is_nobodys_lie(own: Federation) -> None:
    appraiser = own.appraiser(HandClock().floored())
    quote = own.platform("alice").quote(BOUND)
    path = collateral_path(own, "tdx")
    path.write_text("{}")
    with pytest.raises(StorageError):
        fetch(appraiser, quote)()
    path.unlink()
    with pytest.raises(ConfigError):
        fetch(appraiser, quote)()
    with pytest.raises(ConfigError):
        appraise(appraiser, own, quote)()


def test_collateral_is_not_asked_for_a_stranger_of_another_root(
    other_federation: Federation, own: Federation
) -> None:
    for tee in ("sgx", "tdx"):
        collateral_path(own, tee).unlink()
    stranger = other_federation.platform("alice").quote(BOUND)
    appraiser = own.appraiser(HandClock().floored())
    assert code_of(fetch(appraiser, stranger)) == "root-untrusted"


# What a stranger could have asked for.


def glued(federation: Federation) -> bytes:
    """Returns a quote by a key of one's own, behind a genuine platform's chain."""
    genuine = federation.platform("alice")
    own = federation.platform("bob")
    return replace(genuine, _attestation_key=own._attestation_key).quote(BOUND)


def with_chain_of(federation: Federation, other: str) -> bytes:
    """Returns alice's quote with the chain of another genuine platform."""
    quote = federation.platform("alice").quote(BOUND)
    theirs = federation.platform(other).quote(BOUND)
    begin = b"-----BEGIN CERTIFICATE-----"
    return quote[: quote.index(begin)] + theirs[theirs.index(begin) :]


def test_for_a_genuine_quote_of_another_exchange_nobody_is_asked(
    federation: Federation,
) -> None:
    """A public quote is genuine, and can be sent a thousand times."""
    appraiser, source = asking(federation)
    replayed = federation.platform("alice").quote(bytes(64))
    assert code_of(fetch(appraiser, replayed)) == "report-data"
    assert code_of(appraise(appraiser, federation, replayed)) == "report-data"
    assert source.asked == []


@pytest.mark.parametrize("at", range(0, 64, 7))
def test_report_data_that_was_made_to_fit_has_nobody_asked(
    federation: Federation, at: int
) -> None:
    appraiser, source = asking(federation)
    other = bytearray(BOUND)
    other[at] ^= 1 << at % 8
    quote = federation.platform("bob").quote(bytes(other))
    fitted = quote.replace(bytes(other), BOUND, 1)
    assert fitted != quote
    for attempt in (fetch, lambda it, q: appraise(it, federation, q)):
        assert code_of(attempt(appraiser, fitted)) == "quote-signature"
    assert source.asked == []


def test_a_genuine_chain_with_a_quote_of_ones_own_has_nobody_asked(
    federation: Federation,
) -> None:
    appraiser, source = asking(federation)
    for quote, code in (
        (glued(federation), "qe-report-binding"),
        (with_chain_of(federation, "bob"), "qe-report-signature"),
    ):
        assert code_of(fetch(appraiser, quote)) == code
        assert code_of(appraise(appraiser, federation, quote)) == code
    assert source.asked == []


def test_for_a_genuine_quote_of_this_exchange_it_is_asked(
    federation: Federation,
) -> None:
    appraiser, source = asking(federation)
    quote = federation.platform("alice").quote(BOUND)
    fetch(appraiser, quote)()
    appraise(appraiser, federation, quote)()
    assert source.asked == ["tdx", "tdx"]
