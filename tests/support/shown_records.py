"""Records that say what records say, and hold nothing: for showing them to people."""

from __future__ import annotations

from cloister.federation.audit_records import Participant
from cloister.ratls.challenge import IdentityProof
from cloister.ratls.testimony import Said, Testimony
from cloister.ratls.warrant import Warrant, WarrantTerms

WARRANT = Warrant(
    terms=WarrantTerms(
        run_id="blobs/a",
        plan_hash=bytes(32),
        role="server",
        party="aggregator",
        tls_key=bytes(91),
        epoch=3,
        issued_at=0,
        expires_at=1,
    ),
    signature=bytes(64),
)
TESTIMONY = Testimony(
    said=Said(
        run_id="blobs/a",
        plan_hash=bytes(32),
        client_role="worker",
        client_party="alice",
        server_role="server",
        server_party="aggregator",
        client_nonce=bytes(32),
        server_nonce=bytes(32),
        client_key=bytes(91),
        server_key=bytes(91),
        admission_key=bytes(91),
        client_encryption_key=bytes(32),
        server_encryption_key=bytes(32),
    ),
    warrant=WARRANT,
    proof=IdentityProof(signature=bytes(64)),
    collateral=None,
)
ALICE = Participant(party="alice", tls_key_sha256="1" * 64, countersignature=b"s")
