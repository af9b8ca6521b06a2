"""The messages between a node and its party's custodian; one stream is one session.

    1  N        verifies and pins the custodian's certificate (`certificate.py`)
    2  N -> C   Hello      who it is, a nonce, its keys
    3  C -> N   CustodianChallenge  a nonce; the party consented to this plan
    4  N -> C   Possession  a signature over the transcript by the node's TLS key
    5  C -> N   CustodianProof  a signature over the transcript by the party's key
    6  N -> C   EvidenceProof or IdentityProof, only after the custodian's was accepted
    7  C -> N   Warranted  the warrant, and how far the party knows the run to be

Then, as often as the node likes, Deposit -> Deposited. Either side may send a `Refusal`
instead of its next message. Written out in `docs/spec/custodian.md`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cloister.ratls.challenge import (
    EvidenceProof,
    Hello,
    IdentityProof,
    Message,
    Refusal,
)
from cloister.ratls.mark import Mark
from cloister.ratls.warrant import Warrant


class CustodianChallenge(Message, frozen=True, kw_only=True, tag="custodian-challenge"):
    """(3) The custodian's nonce."""

    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Possession(Message, frozen=True, kw_only=True, tag="possession"):
    """(4) The node's TLS key signs the transcript; it has no warrant to show yet."""

    signature: Annotated[bytes, Meta(max_length=80)]


class CustodianProof(Message, frozen=True, kw_only=True, tag="custodian-proof"):
    """(5) The party's key signs the transcript."""

    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Warranted(Message, frozen=True, kw_only=True, tag="warranted"):
    """(7) The warrant, and the high-water mark of the run; None before the first."""

    warrant: Warrant
    mark: Mark | None


class Deposit(Message, frozen=True, kw_only=True, tag="deposit"):
    """How far the run has come now."""

    mark: Mark


class Deposited(Message, frozen=True, kw_only=True, tag="deposited"):
    """The custodian will remember it."""

    mark: Mark


FromNode = Hello | Possession | EvidenceProof | IdentityProof | Deposit | Refusal
FromCustodian = CustodianChallenge | CustodianProof | Warranted | Deposited | Refusal

decode_from_node = msgspec.msgpack.Decoder(FromNode)
decode_from_custodian = msgspec.msgpack.Decoder(FromCustodian)
