from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from datetime import datetime, timedelta
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.federation_in_memory import START, Federation
from tests.support.meeting import Meeting
from tests.support.plan_tree import measurement_of
from tests.support.refusals import code_of

from cloister.attestation.collateral import Collateral
from cloister.attestation.policy import Policy
from cloister.attestation.trust_root import TrustRoot
from cloister.plan.plan import PlanHash, plan_hash
from cloister.ratls.audit_key import (
    AuditKey,
    audit_key_report_data,
    countersign,
    countersigned_bytes,
    verify_audit_key,
    verify_countersignature,
)
from cloister.ratls.challenge import EvidenceProof
from cloister.ratls.identity import Spki, new_identity
from cloister.ratls.node import Node

HEAD = bytes(range(32))
OTHER_KEY = new_identity().tls_spki
OTHERS: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": b"p" * 32,
    "party": "alice",
    "epoch": 2,
    "tls_key": OTHER_KEY,
    "admission_key": OTHER_KEY,
    "encryption_key": b"X" * 32,
    "previous_head": b"h" * 32,
}
ROUND: dict[str, Any] = {
    "run_id": "blobs/a",
    "plan_hash": bytes(32),
    "round_number": 7,
    "head": HEAD,
}
OTHER_ROUNDS: dict[str, Any] = {
    "run_id": "blobs/b",
    "plan_hash": b"p" * 32,
    "round_number": 8,
    "head": HEAD[::-1],
}
IDENTITY = new_identity()
SIGNED = countersign(IDENTITY, **ROUND)


@pytest.fixture
def key(meeting: Meeting) -> AuditKey:
    node = meeting.server_node
    return AuditKey(
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        party=node.party,
        epoch=1,
        tls_key=node.identity.tls_spki,
        admission_key=meeting.authority.spki,
        encryption_key=node.identity.encryption_public,
        previous_head=bytes(32),
    )


class Auditor:
    """Somebody who judges evidence for a key, offline."""

    def __init__(self, federation: Federation, key: AuditKey) -> None:
        self.key = key
        self.root: TrustRoot = federation.root.trust_root
        self.policy: Policy = federation.plan.policy_of("aggregator")
        self.at: datetime = START
        platform = federation.platform("aggregator")
        bound = audit_key_report_data(key)
        self.quote = platform.quote(bound)
        judged = federation.node("aggregator").appraiser.judge(
            self.quote, policy=self.policy, expected_report_data=bound
        )
        self.collateral: Collateral = judged.collateral
        self.verdict = judged.verdict

    def verify(self, quote: bytes | None = None) -> object:
        return verify_audit_key(
            self.quote if quote is None else quote,
            key=self.key,
            collateral=self.collateral,
            policy=self.policy,
            root=self.root,
            at=self.at,
        )


@pytest.fixture
def auditor(federation: Federation, key: AuditKey) -> Auditor:
    return Auditor(federation, key)


def test_an_auditor_comes_to_the_servers_own_verdict(auditor: Auditor) -> None:
    assert auditor.verify() == auditor.verdict


@pytest.mark.parametrize("name", OTHERS)
def test_evidence_for_another_key_or_place_is_refused(
    auditor: Auditor, key: AuditKey, name: str
) -> None:
    assert set(OTHERS) == {field.name for field in fields(AuditKey)}
    auditor.key = replace(key, **{name: OTHERS[name]})
    assert code_of(auditor.verify) == "report-data"


def test_no_other_evidence_of_a_server_introduces_it(
    federation: Federation, meeting: Meeting, auditor: Auditor
) -> None:
    certificate = meeting.client.pin(meeting.certificate())
    proof = Meeting(meeting.server_node, meeting.client_node).server_proof()
    made = federation.platform("aggregator").quote(bytes(64))
    for quote in (certificate.unverified_quote, proof.quote, made):
        assert code_of(auditor.verify, quote) == "report-data"


def test_what_introduces_a_server_is_no_other_evidence(
    meeting: Meeting, auditor: Auditor, key: AuditKey
) -> None:
    marked = audit_key_report_data(key)[32:]
    certificate = meeting.client.pin(meeting.certificate())
    assert marked != certificate.expected_report_data[32:]
    meeting.server_proof()
    replayed = EvidenceProof(quote=auditor.quote)
    assert code_of(meeting.server.admit, replayed) == "report-data"


def test_evidence_of_other_code_is_refused(
    federation: Federation, auditor: Auditor, key: AuditKey
) -> None:
    other = federation.platform(
        "aggregator", measurement=measurement_of("server", task_source=b"other")
    )
    quote = other.quote(audit_key_report_data(key))
    assert code_of(auditor.verify, quote) == "appraisal-measurement"


def test_evidence_of_another_root_is_refused(
    other_federation: Federation, auditor: Auditor
) -> None:
    auditor.root = other_federation.root.trust_root
    assert code_of(auditor.verify) == "root-untrusted"


def test_evidence_is_judged_at_its_time(auditor: Auditor) -> None:
    for days in (-365, 365):
        auditor.at = START + timedelta(days=days)
        assert code_of(auditor.verify).endswith(("-expired", "-not-yet-valid"))


def test_a_head_is_countersigned_with_the_nodes_own_key() -> None:
    verify_countersignature(IDENTITY.tls_spki, SIGNED, **ROUND)


@pytest.mark.parametrize("name", OTHER_ROUNDS)
def test_a_countersignature_counts_for_one_head_of_one_round(name: str) -> None:
    changed = {**ROUND, name: OTHER_ROUNDS[name]}
    assert refusal(IDENTITY.tls_spki, SIGNED, **changed) == "countersignature"


def test_a_countersignature_of_another_node_does_not_count() -> None:
    assert refusal(OTHER_KEY, SIGNED, **ROUND) == "countersignature"
    assert refusal(Spki(bytes(91)), SIGNED, **ROUND) == "tls-key-invalid"


@given(bit=st.integers(min_value=0, max_value=8 * len(SIGNED) - 1))
def test_a_countersignature_with_any_bit_flipped_does_not_count(bit: int) -> None:
    spoilt = bytearray(SIGNED)
    spoilt[bit // 8] ^= 1 << bit % 8
    assert refusal(IDENTITY.tls_spki, bytes(spoilt), **ROUND) == "countersignature"


@given(raw=st.binary(max_size=80))
def test_no_other_bytes_are_a_countersignature(raw: bytes) -> None:
    assert refusal(IDENTITY.tls_spki, raw, **ROUND) == "countersignature"


@given(length=st.integers(min_value=0, max_value=len(SIGNED) - 1))
def test_a_countersignature_that_is_cut_does_not_count(length: int) -> None:
    assert refusal(IDENTITY.tls_spki, SIGNED[:length], **ROUND) == "countersignature"


def test_what_is_countersigned_is_labelled() -> None:
    """A TLS key signs nothing that could be taken for it."""
    signed = countersigned_bytes(**ROUND)
    assert cbor2.loads(signed) == [
        "cloister/audit-head/1",
        "blobs/a",
        bytes(32),
        7,
        HEAD,
    ]


def test_a_possession_is_no_countersignature(
    federation: Federation, server: Node, alice: Node
) -> None:
    answer = Meeting(server, alice).answer()
    code = refusal(
        alice.identity.tls_spki,
        answer.signature,
        run_id=federation.plan.run_id,
        plan_hash=PlanHash(plan_hash(federation.plan)),
        round_number=1,
        head=HEAD,
    )
    assert code == "countersignature"


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_head_of_another_length_is_a_bug(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        countersigned_bytes(**{**ROUND, "head": bytes(length)})


def refusal(*args: Any, **kwargs: Any) -> str:
    check: Callable[..., object] = verify_countersignature
    return code_of(check, *args, **kwargs)
