"""Server certificates with an extension too many, put together by hand.

The server's own key signed each of them, and the evidence in them is good. Where two
readers could see two things, nobody is to guess which of them counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cbor2
import grpc
import pytest
from cryptography import x509
from tests.support.audit import RecordedDoor
from tests.support.federation_in_memory import Federation, quoting
from tests.support.hostile_platforms import CountingPlatform
from tests.support.meeting import CERTIFICATE_LIFE
from tests.support.posing import posing_port
from tests.support.raw_certificates import Extensions, extension, with_extensions
from tests.support.recorded_log import read_events
from tests.support.running import Run, until
from typing_extensions import override

from cloister.attestation.der import encode_oid
from cloister.cli.journal import open_journal
from cloister.errors import VerificationError
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.certificate import (
    EVIDENCE_OID,
    EVIDENCE_TAG,
    make_certificate,
    parse_certificate,
)
from cloister.ratls.enrolling import enrol
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.node import Node

EVIDENCE = EVIDENCE_OID.dotted_string
LEGACY = "0.6.9.42.840.113741.1337.6"
BASIC_CONSTRAINTS = "2.5.29.19"
EXTENDED_KEY_USAGE = "2.5.29.37"
UNKNOWN = "1.3.6.1.4.1.55555.7"
CA_TRUE = bytes.fromhex("30030101ff")
ANY_USAGE = bytes.fromhex("30060604551d2500")

Change = Callable[[Extensions, bytes], Extensions]


def as_it_is(found: Extensions, _: bytes) -> Extensions:
    return found


def evidence_twice(found: Extensions, evidence: bytes) -> Extensions:
    return [*found, extension(EVIDENCE, evidence)]


def other_evidence_first(found: Extensions, _: bytes) -> Extensions:
    other = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [b"other", b"claims"]))
    return [extension(EVIDENCE, other), *found]


def an_authority_as_well(found: Extensions, _: bytes) -> Extensions:
    return [*found, extension(BASIC_CONSTRAINTS, CA_TRUE, critical=True)]


def an_authority_first(found: Extensions, _: bytes) -> Extensions:
    return [extension(BASIC_CONSTRAINTS, CA_TRUE, critical=True), *found]


def for_any_use_as_well(found: Extensions, _: bytes) -> Extensions:
    return [*found, extension(EXTENDED_KEY_USAGE, ANY_USAGE, critical=True)]


def something_critical(found: Extensions, _: bytes) -> Extensions:
    return [*found, extension(UNKNOWN, b"\5\0", critical=True)]


def something_unknown(found: Extensions, _: bytes) -> Extensions:
    return [*found, extension(UNKNOWN, b"\5\0")]


def legacy_evidence_as_well(found: Extensions, evidence: bytes) -> Extensions:
    quote = cbor2.loads(evidence).value[0]
    return [*found, extension(LEGACY, quote)]


def legacy_evidence_first(found: Extensions, evidence: bytes) -> Extensions:
    return legacy_evidence_as_well(found, evidence)[::-1]


def saying(*values: object) -> Change:
    """Returns the evidence with more in it than quote and claims."""

    def change(found: Extensions, evidence: bytes) -> Extensions:
        quote, claims = cbor2.loads(evidence).value
        more = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [quote, claims, *values]))
        return [*without_evidence(found), extension(EVIDENCE, more)]

    return change


def a_second_claim(found: Extensions, evidence: bytes) -> Extensions:
    quote, claims = cbor2.loads(evidence).value
    more = cbor2.dumps({**cbor2.loads(claims), "role": "server"})
    said = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [quote, more]))
    return [*without_evidence(found), extension(EVIDENCE, said)]


def the_same_claim_twice(found: Extensions, evidence: bytes) -> Extensions:
    """A CBOR map with one key two times; the first of them is another key's."""
    quote, claims = cbor2.loads(evidence).value
    entry = claims[1:]
    wrong = entry[:-1] + bytes([entry[-1] ^ 1])
    said = cbor2.dumps(cbor2.CBORTag(EVIDENCE_TAG, [quote, b"\xa2" + wrong + entry]))
    return [*without_evidence(found), extension(EVIDENCE, said)]


def without_evidence(found: Extensions) -> Extensions:
    return [it for it in found if encode_oid(EVIDENCE) not in it]


KINDS: dict[str, tuple[Change, str]] = {
    "evidence-twice": (evidence_twice, "certificate-malformed"),
    "other-evidence-first": (other_evidence_first, "certificate-malformed"),
    "authority-as-well": (an_authority_as_well, "certificate-malformed"),
    "authority-first": (an_authority_first, "certificate-malformed"),
    "any-use-as-well": (for_any_use_as_well, "certificate-malformed"),
    "critical": (something_critical, "certificate-extension"),
    "unknown": (something_unknown, "certificate-extension"),
    "legacy-as-well": (legacy_evidence_as_well, "certificate-extension"),
    "legacy-first": (legacy_evidence_first, "certificate-extension"),
    "collateral": (saying({"tcb_info": "{}"}), "certificate-evidence"),
    "second-quote": (saying(b"quote", b"claims"), "certificate-evidence"),
    "second-claim": (a_second_claim, "certificate-claims"),
    "same-claim-twice": (the_same_claim_twice, "certificate-claims"),
}


def certificate_of(server: Node, change: Change) -> bytes:
    der = make_certificate(
        server.identity, server.platform, at=server.clock(), life=CERTIFICATE_LIFE
    )
    found = x509.load_der_x509_certificate(der).extensions
    value = found.get_extension_for_oid(EVIDENCE_OID).value
    assert isinstance(value, x509.UnrecognizedExtension)
    return with_extensions(
        der, server.identity.tls_key, lambda it: change(it, value.value)
    )


def test_without_a_change_it_is_a_good_certificate(server: Node) -> None:
    der = certificate_of(server, as_it_is)
    assert parse_certificate(der, at=server.clock()).spki == server.identity.tls_spki


@pytest.mark.parametrize(("change", "code"), KINDS.values(), ids=KINDS)
def test_a_certificate_that_says_more_is_refused_before_a_word_is_said(
    run: Run,
    federation: Federation,
    server: Node,
    tmp_path: Path,
    change: Change,
    code: str,
) -> None:
    own = CountingPlatform(federation.platform("alice"))
    alice = quoting(federation.node("alice"), own)
    table = AdmissionTable(server.clock)
    heard: list[str] = []

    class Listening(EnrolmentService):
        @override
        def service(
            self, handler_call_details: grpc.HandlerCallDetails
        ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
            heard.append(handler_call_details.method)
            return super().service(handler_call_details)

    async def story() -> None:
        with open_journal(tmp_path, party=server.party, as_json=False) as log:
            service = Listening(
                server,
                authority=new_authority(at=server.clock(), life=CERTIFICATE_LIFE),
                table=table,
                audit=RecordedDoor(),
                log=log,
                on_admitted=lambda _: None,
            )
            der = certificate_of(server, change)
            async with posing_port(server.identity, der, service) as address:
                with pytest.raises(VerificationError) as caught:
                    await enrol(alice, address)
                assert caught.value.code == code
                assert caught.value.expected
                await until(lambda: service._under_way == 0)

    run(story())
    assert own.quotes == 0
    assert table.parties() == ()
    # It may hear why, where TLS takes its certificate, and nothing else.
    events = read_events(tmp_path / "logs" / "aggregator.jsonl")
    assert [event["code"] for event in events] == len(heard) * [code]
    assert "alice" not in json.dumps(events)
