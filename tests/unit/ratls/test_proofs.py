from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.federation_in_memory import Federation, HandClock, make_federation
from tests.support.plan_tree import by_identity
from tests.support.refusals import code_of

from cloister.attestation.policy import Verdict
from cloister.errors import VerificationError
from cloister.plan.plan import plan_hash
from cloister.ratls.challenge import EvidenceProof, IdentityProof
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import (
    EvidenceProver,
    Identified,
    IdentityProver,
    sign_possession,
    verify_client_proof,
    verify_possession,
)
from cloister.ratls.transcript import Nonce, Transcript


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Bob is admitted by his key alone, alice by evidence."""
    return make_federation(
        tmp_path_factory.mktemp("mixed"), change=lambda tree: by_identity(tree, "bob")
    )


@pytest.fixture
def server(federation: Federation, clock: HandClock) -> Node:
    return federation.node("aggregator", clock=clock)


def transcript_of(node: Node) -> Transcript:
    """Returns what `node` and some server said."""
    return Transcript(
        run_id=node.plan.run_id,
        plan_hash=plan_hash(node.plan),
        client_role=node.role,
        client_party=node.party,
        server_role="server",
        server_party="aggregator",
        client_nonce=Nonce(b"c" * 32),
        server_nonce=Nonce(b"s" * 32),
        client_key=node.identity.tls_spki,
        server_key=new_identity().tls_spki,
        admission_key=new_identity().tls_spki,
        client_encryption_key=node.identity.encryption_public,
        server_encryption_key=bytes(32),
    )


def standing(
    server: Node, proof: EvidenceProof | IdentityProof, transcript: Transcript
) -> Verdict | Identified:
    """Returns what a server makes of a proof."""
    return verify_client_proof(
        proof,
        party=server.plan.find_party(transcript.client_party),
        transcript=transcript,
        appraise=lambda quote, bound: server.appraise(
            quote, party=transcript.client_party, expected_report_data=bound
        ),
    )


def test_a_client_holds_the_key_that_it_signs_with(alice: Node) -> None:
    transcript = transcript_of(alice)
    verify_possession(sign_possession(alice.identity, transcript), transcript)


def test_another_key_or_another_transcript_is_no_possession(alice: Node) -> None:
    transcript = transcript_of(alice)
    by_another = sign_possession(new_identity(), transcript)
    assert code_of(lambda: verify_possession(by_another, transcript)) == (
        "transcript-signature"
    )
    elsewhere = replace(transcript, server_nonce=Nonce(bytes(32)))
    signed_there = sign_possession(alice.identity, elsewhere)
    assert code_of(lambda: verify_possession(signed_there, transcript)) == (
        "transcript-signature"
    )


def test_a_tls_keys_signature_over_anything_else_said_is_no_possession(
    alice: Node,
) -> None:
    transcript = transcript_of(alice)
    for other in (transcript.identity_bytes(), transcript.custodian_bytes()):
        signature = alice.identity.tls_key.sign(other, ec.ECDSA(hashes.SHA256()))
        assert code_of(verify_possession, signature, transcript) == (
            "transcript-signature"
        )


def test_every_flipped_bit_of_a_possession_is_refused(alice: Node) -> None:
    transcript = transcript_of(alice)
    signature = sign_possession(alice.identity, transcript)
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            verify_possession(bytes(flipped), transcript)


def test_an_attested_client_ends_with_the_verdict_on_its_evidence(
    federation: Federation, server: Node
) -> None:
    alice = federation.node("alice")
    transcript = transcript_of(alice)
    proof = alice.prover.prove(transcript)
    assert isinstance(proof, EvidenceProof)
    verdict = standing(server, proof, transcript)
    assert isinstance(verdict, Verdict)
    assert verdict.claims.report_data == transcript.client_report_data()


def test_a_client_by_identity_ends_with_its_partys_key(
    federation: Federation, server: Node
) -> None:
    bob = federation.node("bob")
    transcript = transcript_of(bob)
    proof = bob.prover.prove(transcript)
    assert isinstance(proof, IdentityProof)
    assert standing(server, proof, transcript) == Identified(
        party_key=server.plan.find_party("bob").key
    )


def test_a_party_that_must_attest_cannot_show_its_key_instead(
    federation: Federation, server: Node
) -> None:
    alice = federation.node("alice")
    transcript = transcript_of(alice)
    proof = IdentityProver(key=federation.keys["alice"]).prove(transcript)
    with pytest.raises(VerificationError) as caught:
        standing(server, proof, transcript)
    assert caught.value.code == "proof-kind"
    assert "evidence" in caught.value.expected
    assert "signature" in caught.value.got


def test_evidence_is_no_identity_however_genuine(
    federation: Federation, server: Node
) -> None:
    """Bob's host has a TEE, and good code in it; the plan asks for bob's word."""
    bob = federation.node("bob")
    transcript = transcript_of(bob)
    proof = EvidenceProver(platform=federation.platform("bob")).prove(transcript)
    with pytest.raises(VerificationError) as caught:
        standing(server, proof, transcript)
    assert caught.value.code == "proof-kind"
    assert "signature" in caught.value.expected
    assert "evidence" in caught.value.got


@pytest.mark.parametrize("signer", ["alice", "aggregator", None])
def test_another_partys_signature_is_no_identity(
    federation: Federation, server: Node, signer: str | None
) -> None:
    key = federation.keys[signer] if signer else Ed25519PrivateKey.generate()
    transcript = transcript_of(federation.node("bob"))
    proof = IdentityProver(key=key).prove(transcript)
    assert code_of(lambda: standing(server, proof, transcript)) == "identity-signature"


def test_an_identity_for_another_transcript_is_refused(
    federation: Federation, server: Node
) -> None:
    bob = federation.node("bob")
    transcript = transcript_of(bob)
    for other in (
        replace(transcript, server_nonce=Nonce(bytes(32))),
        replace(transcript, server_key=new_identity().tls_spki),
        replace(transcript, server_role="custodian"),
        replace(transcript, client_party="alice"),
    ):
        proof = bob.prover.prove(other)
        assert code_of(standing, server, proof, transcript) == ("identity-signature")


def test_a_custodians_signature_is_no_identity_though_the_key_is_the_same(
    federation: Federation, server: Node
) -> None:
    transcript = transcript_of(federation.node("bob"))
    key = federation.keys["bob"]
    for signed in (transcript.custodian_bytes(), transcript.possession_bytes()):
        proof = IdentityProof(signature=key.sign(signed))
        assert code_of(standing, server, proof, transcript) == ("identity-signature")


def test_every_flipped_bit_of_an_identity_is_refused(
    federation: Federation, server: Node
) -> None:
    bob = federation.node("bob")
    transcript = transcript_of(bob)
    proof = bob.prover.prove(transcript)
    assert isinstance(proof, IdentityProof)
    for bit in range(8 * 64):
        signature = bytearray(proof.signature)
        signature[bit // 8] ^= 1 << bit % 8
        flipped = IdentityProof(signature=bytes(signature))
        with pytest.raises(VerificationError):
            standing(server, flipped, transcript)


def test_a_prover_by_identity_hides_its_key(federation: Federation) -> None:
    assert "key" not in repr(IdentityProver(key=federation.keys["bob"]))


def test_a_node_admitted_by_identity_has_no_platform(federation: Federation) -> None:
    with pytest.raises(TypeError):
        _ = federation.node("bob").platform


def test_no_first_line_names_a_party(federation: Federation, server: Node) -> None:
    """It is what strangers hear."""
    bob = federation.node("bob")
    transcript = transcript_of(bob)
    bad = IdentityProof(signature=bytes(64))
    for act in (
        lambda: verify_possession(b"", transcript),
        lambda: standing(server, bad, transcript),
        lambda: standing(server, EvidenceProof(quote=b"q"), transcript),
    ):
        with pytest.raises(VerificationError) as caught:
            act()
        assert "bob" not in caught.value.what
        assert "bob" in caught.value.expected
