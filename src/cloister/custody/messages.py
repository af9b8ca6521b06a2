"""The messages between a node and a custodian; one stream is one session.

With its own party's:

    1  N        verifies and pins the custodian's certificate (`certificate.py`)
    2  N -> C   Hello      who it is, a nonce, its keys
    3  C -> N   CustodianChallenge  a nonce; the party consented to this plan
    4  N -> C   Possession  a signature over the transcript by the node's TLS key
    5  C -> N   CustodianProof  a signature over the transcript by the party's key
    6  N -> C   EvidenceProof or IdentityProof, only after the custodian's was accepted
    7  C -> N   Warranted  the warrant, and how far the party knows the run to be

Then, as often as the node likes, Deposit -> Deposited and KeyRequest -> KeysReleased.

With another party's, whose share of its state key it needs, it shows the warrant that
it has, and is given none:

    4  N -> C   Answer     its warrant, and that signature
    7  C -> N   Met        the custodian accepted it

Then KeyRequest -> KeysReleased. Either side may send a `Refusal` instead of its next
message. Written out in `docs/spec/custodian.md`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cloister.custody.released_keys import MAX_SEALED_BYTES
from cloister.ratls.challenge import (
    Answer,
    EvidenceProof,
    Hello,
    IdentityProof,
    Message,
    Refusal,
)
from cloister.ratls.mark import Digest32, Mark
from cloister.ratls.warrant import Warrant
from cloister.storage.keys import KeyKind


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
    """(7) The warrant, and what the party knows of the run.

    Attributes:
        warrant: The warrant.
        mark: The high-water mark of the run; None before the first.
        mark_plan: Hash of the plan under which it was deposited: this one, or one
            before it, in whose log the mark's head lies. None without a mark.
    """

    warrant: Warrant
    mark: Mark | None
    mark_plan: Digest32 | None

    def __post_init__(self) -> None:
        if (self.mark is None) != (self.mark_plan is None):
            raise ValueError("a mark without its plan, or a plan without a mark")


class Met(Message, frozen=True, kw_only=True, tag="met"):
    """(7) Another party's custodian accepted the node; it may ask for a share."""


class Deposit(Message, frozen=True, kw_only=True, tag="deposit"):
    """How far the run has come now."""

    mark: Mark


class Deposited(Message, frozen=True, kw_only=True, tag="deposited"):
    """The custodian will remember it."""

    mark: Mark


class KeyRequest(Message, frozen=True, kw_only=True, tag="key-request"):
    """The node asks for its keys, by kind: which ones they are, the plan says."""

    kinds: Annotated[tuple[KeyKind, ...], Meta(max_length=8)]


class KeysReleased(Message, frozen=True, kw_only=True, tag="keys-released"):
    """The keys asked for, all of them, sealed to the node (`released_keys`)."""

    sealed: Annotated[bytes, Meta(max_length=MAX_SEALED_BYTES)]


FromNode = (
    Hello
    | Possession
    | Answer
    | EvidenceProof
    | IdentityProof
    | Deposit
    | KeyRequest
    | Refusal
)
FromCustodian = (
    CustodianChallenge
    | CustodianProof
    | Warranted
    | Met
    | Deposited
    | KeysReleased
    | Refusal
)

decode_from_node = msgspec.msgpack.Decoder(FromNode)
decode_from_custodian = msgspec.msgpack.Decoder(FromCustodian)
