from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.federation_in_memory import START

from cloister.errors import ProtocolError, VerificationError
from cloister.ratls.certificate import CLOCK_TOLERANCE
from cloister.ratls.identity import new_identity
from cloister.ratls.warrant import (
    HeldWarrant,
    Warrant,
    WarrantTerms,
    instant,
    sign_warrant,
    verify_warrant,
)

KEY = Ed25519PrivateKey.generate()
TERMS = WarrantTerms(
    run_id="blobs/a",
    plan_hash=bytes(range(32)),
    role="worker",
    party="alice",
    tls_key=new_identity().tls_spki,
    epoch=3,
    issued_at=int(START.timestamp()),
    expires_at=int((START + timedelta(days=1)).timestamp()),
)
# One other value for everything a warrant is for.
FOREIGN: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": bytes(32),
    "role": "server",
    "party": "bob",
    "tls_key": new_identity().tls_spki,
}


def verify(warrant: Warrant, *, at: datetime = START) -> WarrantTerms:
    return verify_warrant(warrant, key=KEY.public_key(), wanted=TERMS, at=at)


def refusal(warrant: Warrant, *, at: datetime = START) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        verify(warrant, at=at)
    return caught.value


def test_a_party_warrants_its_node() -> None:
    assert verify(sign_warrant(TERMS, KEY)) == TERMS


def test_a_warrant_by_another_key_is_refused() -> None:
    forged = sign_warrant(TERMS, Ed25519PrivateKey.generate())
    assert refusal(forged).code == "warrant-signature"


@pytest.mark.parametrize("name", FOREIGN)
def test_a_warrant_for_something_else_is_refused(name: str) -> None:
    terms = msgspec.structs.replace(TERMS, **{name: FOREIGN[name]})
    error = refusal(sign_warrant(terms, KEY))
    assert error.code == "warrant-foreign"
    assert name.replace("_", " ") in error.what


@pytest.mark.parametrize("name", TERMS.__struct_fields__)
def test_every_term_is_signed(name: str) -> None:
    signed = sign_warrant(TERMS, KEY)
    other = FOREIGN.get(name, getattr(TERMS, name))
    if isinstance(other, int):
        other += 1
    altered = Warrant(
        terms=msgspec.structs.replace(TERMS, **{name: other}),
        signature=signed.signature,
    )
    assert refusal(altered).code == "warrant-signature"


def test_terms_run_into_each_other_nowhere() -> None:
    first = msgspec.structs.replace(TERMS, party="ab", run_id="c/d")
    second = msgspec.structs.replace(TERMS, party="a", run_id="bc/d")
    assert first.signed_bytes() != second.signed_bytes()


def test_every_flipped_bit_of_the_signature_is_refused() -> None:
    signed = sign_warrant(TERMS, KEY)
    for bit in range(8 * 64):
        signature = bytearray(signed.signature)
        signature[bit // 8] ^= 1 << bit % 8
        altered = Warrant(terms=TERMS, signature=bytes(signature))
        assert refusal(altered).code == "warrant-signature"


def test_a_warrant_holds_until_its_last_second() -> None:
    warrant = sign_warrant(TERMS, KEY)
    end = START + timedelta(days=1)
    verify(warrant, at=end - timedelta(seconds=1))
    assert refusal(warrant, at=end).code == "warrant-expired"


def test_a_warrant_from_the_future_is_refused_beyond_the_tolerance() -> None:
    warrant = sign_warrant(TERMS, KEY)
    verify(warrant, at=START - CLOCK_TOLERANCE)
    early = START - CLOCK_TOLERANCE - timedelta(seconds=1)
    assert refusal(warrant, at=early).code == "warrant-expired"


@pytest.mark.parametrize("life", [0, -1, -100])
def test_a_warrant_that_ends_before_it_begins_never_holds(life: int) -> None:
    """Not even while a clock may be as far behind as the warrant is ahead."""
    issued_at = TERMS.issued_at + 300
    terms = msgspec.structs.replace(
        TERMS, issued_at=issued_at, expires_at=issued_at + life
    )
    assert refusal(sign_warrant(terms, KEY)).code == "warrant-malformed"
    shortest = msgspec.structs.replace(terms, expires_at=issued_at + 1)
    assert verify(sign_warrant(shortest, KEY)) == shortest


def test_a_warrant_that_ends_beyond_all_dates_is_no_accident() -> None:
    endless = msgspec.structs.replace(TERMS, expires_at=2**53)
    assert verify(sign_warrant(endless, KEY)).expires_at == 2**53


def test_no_first_line_names_a_party_or_quotes_a_value() -> None:
    """It is what strangers hear; the rest is for those who know the plan."""
    for terms, key in (
        (TERMS, Ed25519PrivateKey.generate()),
        *((msgspec.structs.replace(TERMS, **{n: FOREIGN[n]}), KEY) for n in FOREIGN),
        (msgspec.structs.replace(TERMS, expires_at=0), KEY),
        (msgspec.structs.replace(TERMS, issued_at=0, expires_at=1), KEY),
    ):
        error = refusal(sign_warrant(terms, key))
        for value in (TERMS.party, TERMS.run_id, TERMS.plan_hash.hex(), "bob"):
            assert value not in error.what
        assert "worker 'alice'" in error.expected


def test_a_node_without_a_warrant_says_so() -> None:
    with pytest.raises(ProtocolError) as caught:
        _ = HeldWarrant().current
    assert caught.value.code == "no-warrant"
    assert "custodian" in caught.value.remedy


def test_a_node_holds_its_newest_warrant() -> None:
    first = sign_warrant(TERMS, KEY)
    second = sign_warrant(msgspec.structs.replace(TERMS, issued_at=1), KEY)
    held = HeldWarrant(first)
    assert held.current is first
    held.renew(second)
    assert held.current is second
    empty = HeldWarrant()
    empty.renew(first)
    assert empty.current is first


def test_seconds_are_a_time_in_utc() -> None:
    assert instant(0) == datetime(1970, 1, 1, tzinfo=UTC)
    assert instant(TERMS.issued_at) == START
    assert instant(TERMS.issued_at).tzinfo is UTC


@pytest.mark.parametrize("seconds", [253402300800, 2**53, 2**63, 2**200, -(2**63)])
def test_seconds_outside_any_calendar_are_refused(seconds: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        instant(seconds)
    assert (caught.value.code, caught.value.got) == ("time-invalid", str(seconds))
