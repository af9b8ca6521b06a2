from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cloister.plan.parties import Role
from cloister.plan.plan import PlanHash
from cloister.ratls.identity import SPKI_BYTES, Spki, new_identity
from cloister.ratls.transcript import FarRole, Nonce, ReportData, Transcript

KEYS = [new_identity().tls_spki for _ in range(4)]
TRANSCRIPT = Transcript(
    run_id="blobs/a",
    plan_hash=PlanHash(bytes(32)),
    client_role="worker",
    client_party="alice",
    server_role="server",
    server_party="aggregator",
    client_nonce=Nonce(b"c" * 32),
    server_nonce=Nonce(b"s" * 32),
    client_key=KEYS[0],
    server_key=KEYS[1],
    admission_key=KEYS[2],
    client_encryption_key=b"x" * 32,
    server_encryption_key=b"y" * 32,
)
# The same meeting with a custodian, who has neither a CA nor an encryption key.
WITH_CUSTODIAN = replace(
    TRANSCRIPT,
    server_role="custodian",
    server_party="alice",
    admission_key=b"",
    server_encryption_key=b"",
)
OTHERS: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": b"p" * 32,
    "client_role": "server",
    "client_party": "bob",
    "server_role": "custodian",
    "server_party": "other",
    "client_nonce": b"C" * 32,
    "server_nonce": b"S" * 32,
    "client_key": KEYS[3],
    "server_key": KEYS[3],
    "admission_key": KEYS[3],
    "client_encryption_key": b"X" * 32,
    "server_encryption_key": b"Y" * 32,
}
# Evidence names its own side's encryption key; the other side's evidence names its own.
NOT_IN_EVIDENCE = {
    "client": "server_encryption_key",
    "server": "client_encryption_key",
}


def signed(transcript: Transcript) -> tuple[bytes, bytes, bytes]:
    return (
        transcript.possession_bytes(),
        transcript.identity_bytes(),
        transcript.custodian_bytes(),
    )


def report_data(transcript: Transcript) -> dict[str, ReportData]:
    return {
        "client": transcript.client_report_data(),
        "server": transcript.server_report_data(),
    }


def test_there_is_another_value_for_every_field() -> None:
    assert list(OTHERS) == [field.name for field in fields(Transcript)]


@pytest.mark.parametrize("name", OTHERS)
def test_every_signature_covers_everything_said(name: str) -> None:
    other = replace(TRANSCRIPT, **{name: OTHERS[name]})
    for was, is_now in zip(signed(TRANSCRIPT), signed(other), strict=True):
        assert was != is_now


@pytest.mark.parametrize("name", OTHERS)
def test_evidence_binds_everything_but_the_other_sides_encryption_key(
    name: str,
) -> None:
    other = replace(TRANSCRIPT, **{name: OTHERS[name]})
    for side, data in report_data(TRANSCRIPT).items():
        same = report_data(other)[side] == data
        assert same == (name == NOT_IN_EVIDENCE[side])


def test_a_custodians_meeting_is_no_servers_in_anything() -> None:
    everything = [
        *signed(TRANSCRIPT),
        *signed(WITH_CUSTODIAN),
        *report_data(TRANSCRIPT).values(),
        *report_data(WITH_CUSTODIAN).values(),
    ]
    assert len(set(everything)) == len(everything)


def test_evidence_made_for_a_custodian_says_so_even_where_all_else_is_the_same() -> (
    None
):
    custodian = replace(TRANSCRIPT, server_role="custodian")
    assert custodian.client_report_data() != TRANSCRIPT.client_report_data()


def test_challenge_evidence_has_no_zeros_where_a_certificates_has() -> None:
    for transcript in (TRANSCRIPT, WITH_CUSTODIAN):
        for data in report_data(transcript).values():
            assert len(data) == 64
            assert data[32:] != bytes(32)


def swapped(transcript: Transcript, *names: str) -> Transcript:
    """Returns what would have been said with both sides' values exchanged."""
    change: dict[str, Any] = {}
    for name in names:
        client, server = f"client_{name}", f"server_{name}"
        change[client] = getattr(transcript, server)
        change[server] = getattr(transcript, client)
    return replace(transcript, **change)


# Roles cannot: nobody meets a worker.
SIDES = ("party", "nonce", "key", "encryption_key")


@pytest.mark.parametrize(
    "names",
    [names for n in range(1, 5) for names in itertools.combinations(SIDES, n)],
    ids=" ".join,
)
def test_values_that_change_sides_make_another_transcript(
    names: tuple[str, ...],
) -> None:
    other = swapped(TRANSCRIPT, *names)
    for was, is_now in zip(signed(TRANSCRIPT), signed(other), strict=True):
        assert was != is_now
    assert not {*report_data(TRANSCRIPT).values()} & {*report_data(other).values()}


texts = st.text(st.characters(codec="utf-8"), max_size=8)
bytes32 = st.binary(min_size=32, max_size=32)
spkis = st.binary(min_size=SPKI_BYTES, max_size=SPKI_BYTES).map(Spki)
transcripts = st.builds(
    Transcript,
    run_id=texts,
    plan_hash=bytes32.map(PlanHash),
    client_role=st.sampled_from(get_args(Role)),
    client_party=texts,
    server_role=st.sampled_from(get_args(FarRole)),
    server_party=texts,
    client_nonce=bytes32.map(Nonce),
    server_nonce=bytes32.map(Nonce),
    client_key=spkis,
    server_key=spkis,
    admission_key=spkis | st.just(b""),
    client_encryption_key=bytes32,
    server_encryption_key=bytes32 | st.just(b""),
)


@given(transcripts)
def test_no_two_of_the_things_signed_or_attested_are_ever_the_same(
    transcript: Transcript,
) -> None:
    # Two roles never are the same: a server meets workers, and everybody custodians.
    assume(transcript.client_role != transcript.server_role)
    everything = [*signed(transcript), *report_data(transcript).values()]
    assert len(set(everything)) == 5


@given(transcripts, transcripts)
def test_whatever_differs_is_signed_differently_whichever_key_signs(
    first: Transcript, second: Transcript
) -> None:
    assume(first != second)
    assert not {*signed(first)} & {*signed(second)}


@given(transcripts, st.sampled_from(sorted(OTHERS)), transcripts)
def test_one_field_is_enough_to_differ(
    transcript: Transcript, name: str, donor: Transcript
) -> None:
    other = replace(transcript, **{name: getattr(donor, name)})
    assume(other != transcript)
    assert not {*signed(transcript)} & {*signed(other)}
    for side, data in report_data(transcript).items():
        same = report_data(other)[side] == data
        assert same == (name == NOT_IN_EVIDENCE[side])


@given(transcripts, st.integers(0, 8), st.integers(0, 8))
def test_names_run_into_each_other_nowhere(
    transcript: Transcript, first: int, second: int
) -> None:
    """The same letters, parted elsewhere, are another transcript."""
    letters = "abcdefgh"
    assume(first != second)
    one, other = (
        replace(transcript, client_party=letters[:at], server_party=letters[at:])
        for at in (first, second)
    )
    assert not {*signed(one)} & {*signed(other)}
    assert one.client_report_data() != other.client_report_data()
