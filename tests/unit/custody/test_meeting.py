from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.custody_meeting import CustodyMeeting, custodian_of
from tests.support.federation_in_memory import (
    START,
    WARRANT_LIFE,
    Federation,
    HandClock,
    make_federation,
    quoting,
)
from tests.support.hostile_platforms import DebugPlatform
from tests.support.plan_tree import measurement_of
from tests.support.published_collateral import out_of_date, publish
from tests.support.refusals import code_of

from cloister.attestation.platforms import Platform
from cloister.attestation.policy import Policy, SgxReference
from cloister.custody.custodian import Custodian
from cloister.custody.messages import Deposit, KeyRequest, Possession
from cloister.errors import VerificationError
from cloister.plan.plan import plan_hash
from cloister.ratls.challenge import (
    VERSION,
    EvidenceProof,
    IdentityProof,
)
from cloister.ratls.identity import new_identity
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.proofs import EvidenceProver, IdentityProver, sign_possession

MARK = Mark(round=1, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


def epochs(custodian: Custodian) -> list[int]:
    """Returns every epoch that the custodian's database knows."""
    return [row.epoch for row in custodian.register.warrants()]


def test_a_node_of_the_party_gets_a_warrant_that_everybody_accepts(
    custody: CustodyMeeting, custodian: Custodian, alice: Node, server: Node
) -> None:
    warranted = custody.warranted()
    terms = server.check_warrant(
        warranted.warrant,
        role="worker",
        party="alice",
        tls_key=alice.identity.tls_spki,
    )
    assert (terms.epoch, terms.issued_at) == (1, int(START.timestamp()))
    assert terms.expires_at == int((START + WARRANT_LIFE).timestamp())
    assert warranted.mark is None
    assert epochs(custodian) == [1]
    proved = custody.custodian.proved
    assert proved is not None
    assert proved.transcript == custody.node.transcript


def test_a_server_has_a_custodian_like_any_node(
    federation: Federation, server: Node, tmp_path: Path
) -> None:
    with custodian_of(federation, "aggregator", tmp_path) as custodian:
        terms = CustodyMeeting(custodian, server).warranted().warrant.terms
        assert (terms.role, terms.party) == ("server", "aggregator")


def test_a_node_by_identity_gets_its_warrant_for_its_partys_signature(
    mixed: Federation, tmp_path: Path
) -> None:
    with custodian_of(mixed, "bob", tmp_path) as custodian:
        meeting = CustodyMeeting(custodian, mixed.node("bob"))
        assert isinstance(meeting.node_proof(), IdentityProof)
        meeting = CustodyMeeting(custodian, mixed.node("bob"))
        assert meeting.warranted().warrant.terms.party == "bob"


def test_the_same_node_keeps_its_epoch_and_the_next_one_gets_the_next(
    federation: Federation, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    first = CustodyMeeting(custodian, alice).warranted().warrant.terms
    clock.forward(WARRANT_LIFE / 2)
    again = CustodyMeeting(custodian, alice).warranted().warrant.terms
    assert (again.epoch, again.issued_at) == (
        first.epoch,
        first.issued_at + int(WARRANT_LIFE.total_seconds() / 2),
    )
    newer = federation.node("alice", clock=clock)
    assert CustodyMeeting(custodian, newer).warranted().warrant.terms.epoch == 2


def test_a_node_that_was_replaced_gets_no_warrant_any_more(
    federation: Federation, custodian: Custodian, alice: Node, clock: HandClock
) -> None:
    CustodyMeeting(custodian, alice).warranted()
    CustodyMeeting(custodian, federation.node("alice", clock=clock)).warranted()
    meeting = CustodyMeeting(custodian, alice)
    assert code_of(meeting.warranted) == "warrant-superseded"
    # It proved itself, so it may hear why.
    assert meeting.custodian.proved is not None
    assert epochs(custodian) == [1, 2]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("version", VERSION - 1, "version-differs"),
        ("version", VERSION + 1, "version-differs"),
        ("plan_hash", bytes(32), "plan-not-consented"),
        ("run_id", "blobs/b", "run-differs"),
        ("party", "bob", "party-differs"),
        ("party", "mallory", "party-differs"),
        ("role", "server", "role-differs"),
        ("tls_key", bytes(91), "tls-key-invalid"),
    ],
)
def test_a_hello_from_elsewhere_is_refused(
    custody: CustodyMeeting, name: str, value: Any, code: str
) -> None:
    hello = msgspec.structs.replace(custody.hello(), **{name: value})
    assert code_of(custody.custodian.challenge, hello) == code


def test_a_node_of_another_version_does_not_wait_for_a_consent(
    custody: CustodyMeeting,
) -> None:
    """The plan's hash may mean another thing there, so the version comes first."""
    hello = msgspec.structs.replace(custody.hello(), version=9, plan_hash=bytes(32))
    assert code_of(custody.custodian.challenge, hello) == "version-differs"


def test_no_first_line_of_a_refused_hello_names_anything(
    custody: CustodyMeeting, federation: Federation
) -> None:
    hello = custody.hello()
    for change in (
        {"version": 1},
        {"plan_hash": bytes(32)},
        {"run_id": "blobs/b"},
        {"party": "bob"},
        {"role": "server"},
    ):
        with pytest.raises(VerificationError) as caught:
            custody.custodian.challenge(msgspec.structs.replace(hello, **change))
        for secret in ("alice", "blobs", plan_hash(federation.plan).hex()):
            assert secret not in caught.value.what


@pytest.mark.parametrize("party", ["bob", "aggregator"])
def test_a_node_of_another_party_is_refused(
    federation: Federation, custodian: Custodian, party: str
) -> None:
    meeting = CustodyMeeting(custodian, federation.node(party))
    # The node would refuse the certificate; one in league with its host does not.
    hello = meeting.node.hello()
    assert code_of(meeting.custodian.challenge, hello) == "party-differs"


def test_a_plan_that_the_party_withdrew_from_is_refused(
    custody: CustodyMeeting, custodian: Custodian, federation: Federation
) -> None:
    custodian.register.withdraw(plan_hash(federation.plan), at=START)
    assert code_of(custody.challenge) == "plan-withdrawn"


def test_a_plan_that_is_withdrawn_in_the_middle_gets_no_warrant(
    custody: CustodyMeeting, custodian: Custodian, federation: Federation
) -> None:
    proof = custody.node_proof()
    custodian.register.withdraw(plan_hash(federation.plan), at=START)
    assert code_of(custody.custodian.warrant, proof) == "plan-withdrawn"
    assert epochs(custodian) == []


def test_a_node_that_does_not_hold_its_key_hears_no_signature(
    custody: CustodyMeeting, custodian: Custodian
) -> None:
    custody.possession()
    transcript = custody.node.transcript
    thief = sign_possession(new_identity(), transcript)
    elsewhere = sign_possession(
        custody.node._session.node.identity, replace(transcript, server_role="server")
    )
    for signature in (b"", bytes(72), thief, elsewhere):
        possession = Possession(signature=signature)
        assert code_of(custody.custodian.prove, possession) == "transcript-signature"
    assert epochs(custodian) == []


def test_a_possession_from_another_session_is_refused(
    custodian: Custodian, alice: Node
) -> None:
    old, new = (CustodyMeeting(custodian, alice) for _ in range(2))
    possession = old.possession()
    new.challenge()
    assert code_of(new.custodian.prove, possession) == "transcript-signature"


def test_a_custodians_own_signature_sent_back_proves_nothing(
    mixed: Federation, tmp_path: Path
) -> None:
    """The party's key signed both, but not the same thing."""
    with custodian_of(mixed, "bob", tmp_path) as custodian:
        meeting = CustodyMeeting(custodian, mixed.node("bob"))
        signature = meeting.custodian_proof().signature
        reflected = IdentityProof(signature=signature)
        assert code_of(meeting.custodian.warrant, reflected) == "identity-signature"
        assert epochs(custodian) == []


def test_the_kind_of_proof_is_the_plans_decision(
    federation: Federation, custody: CustodyMeeting, custodian: Custodian
) -> None:
    custody.node_proof()
    transcript = custody.node.transcript
    by_key = IdentityProver(key=federation.keys["alice"]).prove(transcript)
    assert code_of(custody.custodian.warrant, by_key) == "proof-kind"
    assert epochs(custodian) == []


def test_evidence_where_the_plan_wants_a_signature_is_refused(
    mixed: Federation, tmp_path: Path
) -> None:
    with custodian_of(mixed, "bob", tmp_path) as custodian:
        meeting = CustodyMeeting(custodian, mixed.node("bob"))
        meeting.node_proof()
        transcript = meeting.node.transcript
        prover = EvidenceProver(platform=mixed.platform("bob"))
        evidence = prover.prove(transcript)
        assert code_of(meeting.custodian.warrant, evidence) == "proof-kind"


def test_evidence_made_for_a_server_gets_no_warrant(
    custody: CustodyMeeting, alice: Node
) -> None:
    """A host that poses as the server has a node's evidence; it opens nothing here."""
    custody.node_proof()
    transcript = custody.node.transcript
    for other in (
        replace(transcript, server_role="server"),
        replace(transcript, server_nonce=transcript.client_nonce),
        replace(transcript, client_role="server"),
        replace(transcript, client_key=new_identity().tls_spki),
    ):
        quote = alice.platform.quote(other.client_report_data())
        proof = EvidenceProof(quote=quote)
        assert code_of(custody.custodian.warrant, proof) == "report-data"


def spoiled(federation: Federation, alice: Node, how: str) -> Node:
    other = measurement_of("worker", task_source=b"other")
    platforms: dict[str, Platform] = {
        "code": federation.platform("alice", measurement=other),
        "debug": DebugPlatform(federation.platform("alice")),
        "role": federation.platform("aggregator"),
    }
    return quoting(alice, platforms[how])


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("code", "appraisal-measurement"),
        ("debug", "appraisal-debug"),
        ("role", "appraisal-measurement"),
    ],
)
def test_a_node_that_is_not_what_the_plan_wants_gets_no_warrant(
    federation: Federation, custodian: Custodian, alice: Node, how: str, code: str
) -> None:
    meeting = CustodyMeeting(custodian, spoiled(federation, alice, how))
    assert code_of(meeting.warranted) == code
    # Anybody could have come so far, so what it hears is what strangers hear.
    assert meeting.custodian.proved is None
    assert epochs(custodian) == []


def test_a_node_of_another_root_gets_no_warrant(
    other_federation: Federation, custodian: Custodian, alice: Node
) -> None:
    stranger = quoting(alice, other_federation.platform("alice"))
    meeting = CustodyMeeting(custodian, stranger)
    assert code_of(meeting.warranted) == "root-untrusted"
    assert epochs(custodian) == []


def test_a_partys_own_policy_can_only_refuse_more(
    federation: Federation, alice: Node, tmp_path: Path
) -> None:
    plans = federation.plan.policy_for("worker")
    # Alice's node is a trust domain; her own policy accepts enclaves alone.
    tighter = Policy(root=plans.root, sgx=plans.sgx)
    wider = msgspec.structs.replace(
        plans, sgx=(*plans.sgx, SgxReference(mr_enclave="ab" * 32))
    )
    cases: list[tuple[Policy, str | None]] = [
        (plans, None),
        (wider, None),
        (tighter, "appraisal-measurement"),
    ]
    for number, (policy, code) in enumerate(cases):
        with custodian_of(
            federation, "alice", tmp_path / str(number), local_policy=policy
        ) as custodian:
            meeting = CustodyMeeting(custodian, alice)
            if code is None:
                meeting.warranted()
            else:
                assert code_of(meeting.warranted) == code
                assert epochs(custodian) == []


def test_a_local_policy_does_not_replace_the_plans(
    federation: Federation, alice: Node, tmp_path: Path
) -> None:
    """It accepts what the plan does not; the plan's policy is asked all the same."""
    other = measurement_of("worker", task_source=b"other")
    plans = federation.plan.policy_for("worker")
    words = msgspec.to_builtins(plans)
    words["tdx"] = [
        {
            "mrtd": other.mrtd.hex(),
            "rtmr0": other.rtmr0.hex(),
            "rtmr1": other.rtmr1.hex(),
            "rtmr2": other.rtmr2.hex(),
        }
    ]
    local = msgspec.convert(words, Policy)
    node = quoting(alice, federation.platform("alice", measurement=other))
    with custodian_of(federation, "alice", tmp_path, local_policy=local) as custodian:
        meeting = CustodyMeeting(custodian, node)
        with pytest.raises(VerificationError) as caught:
            meeting.warranted()
        assert caught.value.code == "appraisal-measurement"


def test_a_custodian_judges_with_the_collateral_of_the_day(tmp_path: Path) -> None:
    own = make_federation(tmp_path / "own")
    node = own.node("alice")
    with custodian_of(own, "alice", tmp_path / "registers") as custodian:
        CustodyMeeting(custodian, node).warranted()
        publish(own, out_of_date("tdx"))
        meeting = CustodyMeeting(custodian, node)
        assert code_of(meeting.warranted) == "appraisal-tcb-status"


def test_a_deposit_is_remembered_and_told_to_the_next_node(
    federation: Federation, custody: CustodyMeeting, custodian: Custodian
) -> None:
    custody.accept()
    later = msgspec.structs.replace(MARK, round=2, state=b"t" * 32)
    for mark in (MARK, later):
        assert custody.deposit(mark).mark == mark
    assert custodian.register.mark(federation.plan.run_id) == later
    again = CustodyMeeting(custodian, federation.node("alice")).warranted()
    assert (again.mark, again.mark_plan) == (later, plan_hash(federation.plan))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"round": 0}, "mark-old"),
        ({"state": b"x" * 32}, "mark-forked"),
        ({"server_key": b"x" * 32}, "server-forked"),
    ],
)
def test_a_deposit_that_contradicts_what_is_known_is_refused(
    federation: Federation,
    custody: CustodyMeeting,
    custodian: Custodian,
    change: dict[str, Any],
    code: str,
) -> None:
    custody.accept()
    custody.deposit(MARK)
    bad = msgspec.structs.replace(MARK, **change)
    assert code_of(custody.deposit, bad) == code
    assert custodian.register.mark(federation.plan.run_id) == MARK


def test_a_deposit_of_a_node_that_was_replaced_is_refused(
    federation: Federation, custody: CustodyMeeting, custodian: Custodian
) -> None:
    custody.accept()
    custody.deposit(MARK)
    CustodyMeeting(custodian, federation.node("alice")).accept()
    later = msgspec.structs.replace(MARK, round=2)
    assert code_of(custody.deposit, later) == "warrant-superseded"
    assert custodian.register.mark(federation.plan.run_id) == MARK


def test_a_deposit_after_the_plan_was_withdrawn_is_refused(
    federation: Federation, custody: CustodyMeeting, custodian: Custodian
) -> None:
    custody.accept()
    custodian.register.withdraw(plan_hash(federation.plan), at=START)
    assert code_of(custody.deposit, MARK) == "plan-withdrawn"


def test_every_session_has_its_own_nonces(custodian: Custodian, alice: Node) -> None:
    first, second = (CustodyMeeting(custodian, alice) for _ in range(2))
    assert first.hello().nonce != second.hello().nonce
    assert first.challenge().nonce != second.challenge().nonce


def test_steps_out_of_order_are_bugs(custody: CustodyMeeting) -> None:
    side = custody.custodian
    possession = Possession(signature=b"")
    proofs = (EvidenceProof(quote=b"q"), IdentityProof(signature=bytes(64)))
    assert side.proved is None
    with pytest.raises(RuntimeError):
        side.release(KeyRequest(kinds=("data",)))
    with pytest.raises(RuntimeError):
        side.prove(possession)
    with pytest.raises(RuntimeError):
        side.deposit(Deposit(mark=MARK))
    custody.challenge()
    for proof in proofs:
        with pytest.raises(RuntimeError):
            side.warrant(proof)
    custody.possession()
    with pytest.raises(RuntimeError):
        side.deposit(Deposit(mark=MARK))
    with pytest.raises(RuntimeError):
        side.release(KeyRequest(kinds=("data",)))


def test_the_key_of_a_party_is_in_no_repr(custodian: Custodian) -> None:
    assert "Ed25519PrivateKey" not in repr(custodian)


def test_a_tls_key_signs_for_this_meeting_and_no_other_kind(
    custody: CustodyMeeting, alice: Node
) -> None:
    custody.possession()
    transcript = custody.node.transcript
    for signed in (transcript.identity_bytes(), transcript.custodian_bytes()):
        signature = alice.identity.tls_key.sign(signed, ec.ECDSA(hashes.SHA256()))
        possession = Possession(signature=signature)
        assert code_of(custody.custodian.prove, possession) == "transcript-signature"
