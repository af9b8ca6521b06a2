"""Workers sign the head of the server's audit log that comes with each round's model.

So a server that shows its workers one log and an auditor another one is found out. The
signature comes with the update, or with the report on the final model, and counts for
the round of that model's header.
"""

from __future__ import annotations

from cloister.federation.audit_records import Participant
from cloister.federation.messages import ModelHeader
from cloister.plan.plan import PlanHash
from cloister.ratls.admission_table import Peer
from cloister.ratls.audit_key import countersign, verify_countersignature
from cloister.ratls.node import Node


def countersign_head(node: Node, header: ModelHeader) -> bytes:
    """Returns a worker's signature over the head that came with a model."""
    return countersign(
        node.identity,
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        round_number=header.round,
        head=header.audit_head,
    )


def verify_participant(
    unverified_signature: bytes,
    *,
    peer: Peer,
    header: ModelHeader,
    run_id: str,
    plan_hash: PlanHash,
) -> Participant:
    """Returns a party's part in a round, if its node signed the head it was sent.

    Args:
        unverified_signature: What came with the update or the report.
        peer: The admitted node that sent it.
        header: The model that it is for.
        run_id: The run.
        plan_hash: The plan.

    Raises:
        VerificationError: If it is not that node's signature over that head.
    """
    verify_countersignature(
        peer.tls_key,
        unverified_signature,
        run_id=run_id,
        plan_hash=plan_hash,
        round_number=header.round,
        head=header.audit_head,
    )
    return Participant(
        party=peer.party,
        tls_key_sha256=peer.node.key.hex(),
        countersignature=unverified_signature,
    )
