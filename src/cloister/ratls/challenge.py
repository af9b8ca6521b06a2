"""The messages of the mutual challenge, and what both sides' evidence must say.

    1  C        verifies and pins the server's certificate (`certificate.py`)
    2  C -> S   Hello      who it is, a nonce, its keys
    3  S -> C   Challenge  a nonce, the server's other keys
    4  C -> S   Answer     its warrant and a signature over the transcript, cheap to
                           check, before any quote is made
    5  S -> C   ServerProof  the server's warrant and fresh evidence
    6  C -> S   ClientProof  fresh evidence, only after the server's was accepted
    7  S -> C   Admission  a certificate for the attested key

Either side may send a `Refusal` instead of its next message, with its reason. Report
data binds role, party, run, plan, both nonces and every key, so evidence cannot be
replayed, reflected, or diverted to another key, role, party, plan or run. Written out
in `docs/spec/handshake.md`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, NewType, TypeVar

import cbor2
import msgspec
from msgspec import Meta

from cloister.errors import ProtocolError
from cloister.plan.plan import Name, PlanHash, Role, RunId
from cloister.ratls.identity import SPKI_BYTES, Spki
from cloister.ratls.warrant import Warrant

Nonce = NewType("Nonce", bytes)  # 32 random bytes, used once
ReportData = NewType("ReportData", bytes)  # 64 bytes

VERSION = 1
NONCE_BYTES = 32
# A quote with its chain is 5 to 10 kB; nothing else in a message is large.
MAX_MESSAGE_BYTES = 64 * 1024

_REPORT_LABEL = "cloister/report-data/1"
_TRANSCRIPT_LABEL = "cloister/transcript/1"
# The second half of report data: a certificate's evidence has zeros there, so neither
# kind can be passed off as the other.
_CHALLENGE_MARK = hashlib.sha256(b"cloister/challenge-evidence/1").digest()

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


class ClientProof(Message, frozen=True, kw_only=True, tag="client-proof"):
    """(6) The client's fresh evidence."""

    quote: _Quote


class Admission(Message, frozen=True, kw_only=True, tag="admission"):
    """(7) The client's certificate for the training port, DER."""

    certificate: Annotated[bytes, Meta(max_length=8192)]


class Refusal(Message, frozen=True, kw_only=True, tag="refusal"):
    """The sender will not go on, and why."""

    code: Annotated[str, Meta(max_length=64)]
    what: _Line
    expected: _Line = ""
    got: _Line = ""


FromClient = Hello | Answer | ClientProof | Refusal
FromServer = Challenge | ServerProof | Admission | Refusal
_Expected = TypeVar("_Expected", FromClient, FromServer)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """Everything both sides said about themselves before any evidence.

    Attributes:
        run_id: The run.
        plan_hash: The plan.
        client_role: The client's claimed role.
        client_party: The client's claimed party.
        server_party: The server's party in the plan.
        client_nonce: The client's nonce.
        server_nonce: The server's nonce.
        client_key: The client's TLS key.
        server_key: The server's TLS key, as pinned.
        admission_key: The key of the server's admission CA.
        client_encryption_key: X25519, 32 bytes.
        server_encryption_key: X25519, 32 bytes.
    """

    run_id: str
    plan_hash: PlanHash
    client_role: Role
    client_party: str
    server_party: str
    client_nonce: Nonce
    server_nonce: Nonce
    client_key: Spki
    server_key: Spki
    admission_key: Spki
    client_encryption_key: bytes
    server_encryption_key: bytes

    def signed_bytes(self) -> bytes:
        """Returns what the client's TLS key signs in message 4."""
        return cbor2.dumps(
            [
                _TRANSCRIPT_LABEL,
                self.client_role,
                self.client_party,
                self.server_party,
                *self._shared(),
                self.client_encryption_key,
                self.server_encryption_key,
            ],
            canonical=True,
        )

    def client_report_data(self) -> ReportData:
        """Returns what the client's evidence must carry."""
        return self._report_data(
            self.client_role, self.client_party, self.client_encryption_key
        )

    def server_report_data(self) -> ReportData:
        """Returns what the server's evidence must carry."""
        return self._report_data(
            "server", self.server_party, self.server_encryption_key
        )

    def _report_data(self, role: Role, party: str, encryption_key: bytes) -> ReportData:
        bound = cbor2.dumps(
            [_REPORT_LABEL, role, party, *self._shared(), encryption_key],
            canonical=True,
        )
        return ReportData(hashlib.sha256(bound).digest() + _CHALLENGE_MARK)

    def _shared(self) -> list[str | bytes]:
        return [
            self.run_id,
            self.plan_hash,
            self.client_nonce,
            self.server_nonce,
            self.client_key,
            self.server_key,
            self.admission_key,
        ]
