"""A server's audit log: who may sign it, and how far others have seen it.

The log is signed by the server's TLS key. Evidence of its own shows that this key is an
attested server's, and that it goes on from the records before: whoever puts another
server's record behind them, or takes some away, has no evidence for it.

The log's **head** stands for all its records. Each worker countersigns the head that
comes with a round's model, so the server cannot later have written another one.

A TLS key signs in several forms, and none can be taken for another: the lists here and
in `transcript` begin with their labels, the log's records with ``DSSEv1``, and what TLS
itself signs, with 64 spaces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.collateral import Collateral
from cloister.attestation.policy import Policy, Verdict
from cloister.attestation.trust_root import TrustRoot
from cloister.errors import VerificationError
from cloister.plan.plan import PlanHash
from cloister.ratls.appraiser import judge_with
from cloister.ratls.identity import NodeIdentity, Spki, parse_spki
from cloister.ratls.transcript import ReportData

HEAD_BYTES = 32

_KEY_LABEL = "cloister/audit-key/1"
_HEAD_LABEL = "cloister/audit-head/1"
# The second half of report data: neither a certificate's evidence (zeros there) nor a
# challenge's can be passed off as this, nor this as theirs.
_AUDIT_MARK = hashlib.sha256(b"cloister/audit-key/1 mark").digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditKey:
    """A server's keys, and where in the audit log it begins to sign.

    Attributes:
        run_id: The run.
        plan_hash: The plan.
        party: The server's party.
        epoch: The epoch of its warrant.
        tls_key: The key that signs the log.
        admission_key: The key of its admission CA.
        encryption_key: X25519, 32 bytes.
        previous_head: The log's head before the record that introduces it, 32 bytes.
    """

    run_id: str
    plan_hash: PlanHash
    party: str
    epoch: int
    tls_key: Spki
    admission_key: Spki
    encryption_key: bytes
    previous_head: bytes


def audit_key_report_data(key: AuditKey) -> ReportData:
    """Returns what the evidence must carry that introduces a server to its log."""
    bound = cbor2.dumps(
        [
            _KEY_LABEL,
            key.run_id,
            key.plan_hash,
            key.party,
            key.epoch,
            key.tls_key,
            key.admission_key,
            key.encryption_key,
            key.previous_head,
        ],
        canonical=True,
    )
    return ReportData(hashlib.sha256(bound).digest() + _AUDIT_MARK)


def verify_audit_key(
    unverified_quote: bytes,
    *,
    key: AuditKey,
    collateral: Collateral,
    policy: Policy,
    root: TrustRoot,
    at: datetime,
) -> Verdict:
    """Returns the verdict on the evidence that introduces a server to its log.

    Steps: (1) it was made for these keys and this place in the log; (2) it was genuine
    at `at` with this collateral; (3) it is what the policy wants.

    Left to the caller: the warrant for the TLS key, that its epoch is higher than that
    of the server before, and that `previous_head` is the head there.

    Raises:
        VerificationError: If any step fails.
    """
    return judge_with(
        unverified_quote,
        collateral=collateral,
        policy=policy,
        expected_report_data=audit_key_report_data(key),
        root=root,
        at=at,
    )


def countersigned_bytes(
    *, run_id: str, plan_hash: bytes, round_number: int, head: bytes
) -> bytes:
    """Returns the canonical bytes that a worker signs for a head it was sent.

    Args:
        run_id: The run.
        plan_hash: The plan.
        round_number: The round whose model came with the head.
        head: The head of the server's audit log, 32 bytes.
    """
    if len(head) != HEAD_BYTES:
        raise ValueError(f"a head has {HEAD_BYTES} bytes, not {len(head)}")
    return cbor2.dumps(
        [_HEAD_LABEL, run_id, plan_hash, round_number, head], canonical=True
    )


def countersign(
    identity: NodeIdentity,
    *,
    run_id: str,
    plan_hash: bytes,
    round_number: int,
    head: bytes,
) -> bytes:
    """Returns the TLS key's signature over a head, ECDSA with SHA-256, DER.

    Args:
        identity: The worker's keys.
        run_id: See `countersigned_bytes`.
        plan_hash: See `countersigned_bytes`.
        round_number: See `countersigned_bytes`.
        head: See `countersigned_bytes`.
    """
    signed = countersigned_bytes(
        run_id=run_id, plan_hash=plan_hash, round_number=round_number, head=head
    )
    return identity.tls_key.sign(signed, ec.ECDSA(hashes.SHA256()))


def verify_countersignature(
    spki: Spki,
    unverified_signature: bytes,
    *,
    run_id: str,
    plan_hash: bytes,
    round_number: int,
    head: bytes,
) -> None:
    """Checks that the holder of a TLS key was sent this head with this round's model.

    Args:
        spki: The worker's TLS key.
        unverified_signature: ECDSA with SHA-256, DER.
        run_id: See `countersigned_bytes`.
        plan_hash: See `countersigned_bytes`.
        round_number: See `countersigned_bytes`.
        head: See `countersigned_bytes`.

    Raises:
        VerificationError: If the key is none, or the signature is not its.
    """
    signed = countersigned_bytes(
        run_id=run_id, plan_hash=plan_hash, round_number=round_number, head=head
    )
    try:
        parse_spki(spki).verify(unverified_signature, signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise VerificationError(
            "the audit log's head is not countersigned",
            code="countersignature",
            expected=f"a signature over the head of round {round_number} by the key"
            f" {hashlib.sha256(spki).hexdigest()[:16]}",
            got="another one",
        ) from error
