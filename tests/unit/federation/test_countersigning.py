from __future__ import annotations

import msgspec
import pytest

from cloister.errors import VerificationError
from cloister.federation.audit_records import Participant
from cloister.federation.countersigning import countersign_head, verify_participant
from cloister.federation.messages import ModelHeader
from cloister.ratls.admission_table import Peer
from cloister.ratls.epochs import key_digest
from cloister.ratls.node import Node
from cloister.ratls.proofs import Identified

HEADER = ModelHeader(
    round=3, layout=64 * "0", evaluate=False, final=False, audit_head=bytes(32)
)


def peer_of(node: Node) -> Peer:
    return Peer(
        role=node.role,
        party=node.party,
        epoch=1,
        tls_key=node.identity.tls_spki,
        encryption_key=node.identity.encryption_public,
        standing=Identified(party_key="ed25519:..."),
    )


def verified(signature: bytes, node: Node, header: ModelHeader = HEADER) -> Participant:
    return verify_participant(
        signature,
        peer=peer_of(node),
        header=header,
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
    )


def test_who_signed_the_head_that_it_was_sent_takes_part(alice: Node) -> None:
    signature = countersign_head(alice, HEADER)
    part = verified(signature, alice)
    assert (part.party, part.countersignature) == ("alice", signature)
    assert part.tls_key_sha256 == key_digest(alice.identity.tls_spki).hex()


@pytest.mark.parametrize(
    "change", [{"round": 4}, {"audit_head": b"\1" * 32}], ids=["round", "head"]
)
def test_a_signature_is_for_one_head_and_one_round(
    alice: Node, change: dict[str, object]
) -> None:
    other = msgspec.structs.replace(HEADER, **change)
    with pytest.raises(VerificationError) as caught:
        verified(countersign_head(alice, other), alice)
    assert caught.value.code == "countersignature"


def test_a_signature_of_another_node_is_none(alice: Node, bob: Node) -> None:
    for signature in (countersign_head(bob, HEADER), b"", b"\x30\x00", bytes(80)):
        with pytest.raises(VerificationError) as caught:
            verified(signature, alice)
        assert caught.value.code == "countersignature"
