"""The messages of the mutual challenge between a client and the run's server.

    1  C        verifies and pins the server's certificate (`certificate.py`)
    2  C -> S   Hello      who it is, a nonce, its keys
    3  S -> C   Challenge  a nonce, the server's other keys
    4  C -> S   Answer     its warrant and a signature over the transcript, cheap to
                           check, before any quote is made
    5  S -> C   ServerProof  the server's warrant and fresh evidence
    6  C -> S   EvidenceProof  fresh evidence, only after the server's was accepted;
                           or, from a party that the plan admits by identity, an
                           IdentityProof: a signature by the party's key
    7  S -> C   Admission  a certificate for the client's key

Either side may send a `Refusal` instead of its next message, with its reason. What is
signed and attested is in `transcript`; `docs/spec/handshake.md` writes all of it out.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from cloister.errors import ProtocolError
from cloister.plan.plan import Name, Role, RunId
from cloister.ratls.identity import SPKI_BYTES
from cloister.ratls.warrant import Seconds, Warrant

VERSION = 2
NONCE_BYTES = 32
# A quote with its chain is 5 to 10 kB; nothing else in a message is large.
MAX_MESSAGE_BYTES = 64 * 1024

_Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Key = Annotated[bytes, Meta(min_length=SPKI_BYTES, max_length=SPKI_BYTES)]
_Quote = Annotated[bytes, Meta(min_length=1, max_length=32 * 1024)]
_Line = Annotated[str, Meta(max_length=600)]


class Message(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="message",
):
    """Base of all messages; never sent itself."""


class Hello(Message, frozen=True, kw_only=True, tag="hello"):
    """(2) The client says who it claims to be."""

    version: int
    role: Role
    party: Name
    run_id: RunId
    plan_hash: _Bytes32
    nonce: _Bytes32
    tls_key: _Key
    encryption_key: _Bytes32


class Challenge(Message, frozen=True, kw_only=True, tag="challenge"):
    """(3) The server's nonce and its keys beside the pinned one."""

    nonce: _Bytes32
    admission_key: _Key
    encryption_key: _Bytes32


class Answer(Message, frozen=True, kw_only=True, tag="answer"):
    """(4) The client's warrant and its TLS key's signature over the transcript."""

    warrant: Warrant
    signature: Annotated[bytes, Meta(max_length=80)]


class ServerProof(Message, frozen=True, kw_only=True, tag="server-proof"):
    """(5) The server's warrant and fresh evidence."""

    warrant: Warrant
    quote: _Quote


class EvidenceProof(Message, frozen=True, kw_only=True, tag="evidence-proof"):
    """(6) The client's fresh evidence."""

    quote: _Quote


class IdentityProof(Message, frozen=True, kw_only=True, tag="identity-proof"):
    """(6) The party's Ed25519 signature, where the plan admits it by identity."""

    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Admission(Message, frozen=True, kw_only=True, tag="admission"):
    """(7) The client's certificate for the training port, and how long it counts.

    Attributes:
        certificate: DER.
        expires_at: Unix time after which the client is out, unless it attests again.
        last_round: The last round that the client may take part in, likewise.
    """

    certificate: Annotated[bytes, Meta(max_length=8192)]
    expires_at: Seconds
    last_round: Annotated[int, Meta(ge=1, le=2**53)]


class Refusal(Message, frozen=True, kw_only=True, tag="refusal"):
    """The sender will not go on, and why.

    Attributes:
        code: Stable name for machines.
        what: What is wrong.
        expected: What would have been right; empty for strangers.
        got: What came instead; empty for strangers.
        trouble: Whether the sender cannot go on for a reason of its own; then it says
            nothing about the receiver, who may try again.
    """

    code: Annotated[str, Meta(max_length=64)]
    what: _Line
    expected: _Line = ""
    got: _Line = ""
    trouble: bool = False


ClientProof = EvidenceProof | IdentityProof
FromClient = Hello | Answer | ClientProof | Refusal
FromServer = Challenge | ServerProof | Admission | Refusal
_Expected = TypeVar("_Expected")

decode_from_client = msgspec.msgpack.Decoder(FromClient)
decode_from_server = msgspec.msgpack.Decoder(FromServer)
encode_message = msgspec.msgpack.Encoder().encode


def decode_message(
    unverified: bytes, decoder: msgspec.msgpack.Decoder[_Expected]
) -> _Expected:
    """Returns the message in `unverified`.

    Raises:
        ProtocolError: If it is too large or not one of the messages of its side.
    """
    if len(unverified) > MAX_MESSAGE_BYTES:
        raise ProtocolError(
            "an enrolment message is too large",
            code="message-size",
            expected=f"at most {MAX_MESSAGE_BYTES} bytes",
            got=str(len(unverified)),
        )
    try:
        return decoder.decode(unverified)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(
            "an enrolment message is malformed",
            code="message-malformed",
            got=str(error)[:200],
        ) from error
