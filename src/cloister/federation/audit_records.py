"""The records of a run's audit log: what happened, with all that shows it.

Public values only. Written out in `docs/spec/audit.md`. Bytes are base64 in JSON.

Each is signed by the server in force: the one introduced last. A server that begins may
have to write `RunOpened` and `CollateralUsed` before its introduction; it signs these,
too, and they are part of what its evidence is over.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloister.errors import StorageError
from cloister.plan.plan import Name, Role, RunId
from cloister.ratls.testimony import Bytes32, Hex32, Testimony
from cloister.ratls.warrant import Warrant

RunRound = Annotated[int, Meta(ge=0, le=2**31)]
CODE_CHARACTERS = 64
REASON_CHARACTERS = 600
_Code = Annotated[str, Meta(max_length=CODE_CHARACTERS)]
_Line = Annotated[str, Meta(max_length=REASON_CHARACTERS)]


class Entry(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
):
    """Base of all records; never written itself."""


class RunOpened(Entry, frozen=True, kw_only=True, tag="run-opened"):
    """The first record: the plan, and everybody's consent to it.

    Attributes:
        run_id: The run.
        plan_hash: The plan's hash.
        plan: The plan's TOML text, to the byte.
        consents: Each party's consent, as its file holds it, in plan order.
    """

    run_id: RunId
    plan_hash: Bytes32
    plan: bytes
    consents: tuple[bytes, ...]


class CollateralUsed(Entry, frozen=True, kw_only=True, tag="collateral"):
    """Collateral that records after this one name by its hash; written once each.

    Attributes:
        sha256: SHA-256 of `text` in UTF-8.
        text: The JSON shape that DCAP tools exchange.
    """

    sha256: Hex32
    text: str


class ServerIntroduced(Entry, frozen=True, kw_only=True, tag="server-introduced"):
    """A server begins, or begins again: who signs from this record on, this one too.

    Attributes:
        warrant: Its warrant; it names the TLS key and the epoch.
        quote: Evidence over the key and the head before this record
            (`ratls.audit_key`).
        collateral: What the quote was judged with.
        admission_key: SubjectPublicKeyInfo of its admission CA.
        encryption_key: X25519, 32 bytes.
        completed: Rounds completed in the state it begins with.
        state: SHA-256 of that state.
        restart: Whether another server wrote to this log before.
    """

    warrant: Warrant
    quote: bytes
    collateral: Hex32
    admission_key: bytes
    encryption_key: Bytes32
    completed: RunRound
    state: Bytes32
    restart: bool


class NodeAdmitted(Entry, frozen=True, kw_only=True, tag="node-admitted"):
    """A worker proved itself and may train, or goes on to.

    Attributes:
        testimony: What it showed.
        expires_at: Unix time at which the admission lapses.
        last_round: The last round it is good for.
        verdict: For people: what it was found to be.
    """

    testimony: Testimony
    expires_at: int
    last_round: RunRound
    verdict: dict[str, str | int | bool | dict[str, str]]


class NodeRefused(Entry, frozen=True, kw_only=True, tag="node-refused"):
    """Somebody who had shown a party's warrant, or was admitted, was refused.

    Attributes:
        role: The role that the warrant names.
        party: The party that the warrant names.
        where: At the door, or in a call while training.
        code: Why, for machines.
        reason: Why, for people.
        testimony: What it showed, where it was refused at the door.
    """

    role: Role
    party: Name
    where: Literal["enrolment", "training"]
    code: _Code
    reason: _Line
    testimony: Testimony | None


class RefusalsCounted(Entry, frozen=True, kw_only=True, tag="refusals-counted"):
    """Refusals of one party that came too fast to be written one by one."""

    party: Name
    count: Annotated[int, Meta(ge=1)]


class AdmissionWithdrawn(Entry, frozen=True, kw_only=True, tag="admission-withdrawn"):
    """An admitted node's evidence held no longer; it is out until it attests again.

    Attributes:
        party: Whose.
        tls_key_sha256: Which node.
        code: Why, for machines.
        reason: Why, for people.
    """

    party: Name
    tls_key_sha256: Hex32
    code: _Code
    reason: _Line


class WarrantRenewed(Entry, frozen=True, kw_only=True, tag="warrant-renewed"):
    """The server's own warrant from now on."""

    warrant: Warrant


class Participant(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A party whose update counted in a round.

    Attributes:
        party: The party.
        tls_key_sha256: Its node.
        countersignature: The node's signature over the head that it was sent with the
            round's model (`countersigned_bytes`), ECDSA with SHA-256, DER. The final
            model goes out for the round after the last.
    """

    party: Name
    tls_key_sha256: Hex32
    countersignature: Annotated[bytes, Meta(max_length=80)]


class RoundCompleted(Entry, frozen=True, kw_only=True, tag="round"):
    """A round is over.

    Attributes:
        round: Counts from 1.
        head: The head of this log that went out with the round's model.
        participants: Those whose updates counted, in plan order. The plan says who they
            may be (`auditing.participants`).
        state: SHA-256 of the state after the round, where it is stated: always, with a
            number as quorum.
    """

    round: RunRound
    head: Hex32
    participants: tuple[Participant, ...]
    state: Hex32 | None


class ModelSealed(Entry, frozen=True, kw_only=True, tag="model-sealed"):
    """The end of a run: the model lies sealed to its recipients.

    Attributes:
        sha256: SHA-256 of the sealed file.
        size_bytes: Its size.
        recipients: age recipients.
        rounds: Rounds trained.
        state: SHA-256 of the final state.
        head: The head that went out with the final model.
        reports: The parties that reported on it, and countersigned that head, in plan
            order; with a number as quorum maybe not all.
    """

    sha256: Hex32
    size_bytes: Annotated[int, Meta(ge=0)]
    recipients: tuple[str, ...]
    rounds: RunRound
    state: Hex32
    head: Hex32
    reports: tuple[Participant, ...]


class RunFailed(Entry, frozen=True, kw_only=True, omit_defaults=True, tag="run-failed"):
    """The server gave up, or was stopped.

    Attributes:
        code: Why, for machines.
        reason: Why, for people.
        state: SHA-256 of the state after the rounds so far, if it is durable.
    """

    code: _Code
    reason: _Line
    state: Hex32 | None = None


AnyEntry = (
    RunOpened
    | CollateralUsed
    | ServerIntroduced
    | NodeAdmitted
    | NodeRefused
    | RefusalsCounted
    | AdmissionWithdrawn
    | WarrantRenewed
    | RoundCompleted
    | ModelSealed
    | RunFailed
)


def encode_entry(entry: AnyEntry) -> bytes:
    """Returns a record's content as JSON."""
    return msgspec.json.encode(entry)


def parse_entry(unverified: bytes) -> AnyEntry:
    """Returns a record's content; the caller has verified who signed it.

    Raises:
        StorageError: If it is not exactly what `encode_entry` writes.
    """
    try:
        entry: AnyEntry = _DECODER.decode(unverified)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _malformed(str(error)[:200]) from error
    # One content has one spelling: no member twice, no spare bits of base64.
    if encode_entry(entry) != unverified:
        raise _malformed("spelled in another way")
    return entry


_DECODER: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)


def _malformed(got: str) -> StorageError:
    return StorageError(
        "this is no record of a run's audit log",
        code="audit-malformed",
        expected="a record of version 1",
        got=got,
    )
