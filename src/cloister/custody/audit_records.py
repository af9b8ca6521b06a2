"""The records of a custodian's audit: each decision, with all that shows it.

They lie in its register, each written in the same transaction as what it records, and
never hold a key. Public values only. Written out in `docs/spec/audit.md`. Bytes are
base64 in JSON.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from cloister.plan.plan import Name, Role, RunId
from cloister.ratls.testimony import Bytes32, Hex32, Testimony
from cloister.ratls.warrant import WarrantTerms
from cloister.storage.keys import KeyKind

REASON_CHARACTERS = 600
_Code = Annotated[str, Meta(max_length=64)]
_Line = Annotated[str, Meta(max_length=REASON_CHARACTERS)]
_KeyId = Annotated[str, Meta(max_length=80)]
_Label = Annotated[str, Meta(max_length=64)]
_Count = Annotated[int, Meta(ge=1, le=2**53)]


class CustodianEntry(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
):
    """Base of all records; never written itself."""


class CustodianOpened(
    CustodianEntry, frozen=True, kw_only=True, tag="custodian-opened"
):
    """The first record: whose custodian this is."""

    party: Name


class ConsentGiven(CustodianEntry, frozen=True, kw_only=True, tag="consent-given"):
    """The party consents to a plan.

    Attributes:
        run_id: The plan's run.
        plan_hash: The plan's hash.
        plan: Its TOML text, to the byte.
        consent: The consent, as its file holds it.
        supersedes: The plan of the run that was in force, or withdrawn, before.
    """

    run_id: RunId
    plan_hash: Bytes32
    plan: bytes
    consent: bytes
    supersedes: Bytes32 | None


class ConsentWithdrawn(
    CustodianEntry, frozen=True, kw_only=True, tag="consent-withdrawn"
):
    """The party ends its consent: nothing is signed or released under it any more."""

    run_id: RunId
    plan_hash: Bytes32


class CollateralKept(CustodianEntry, frozen=True, kw_only=True, tag="collateral"):
    """Collateral that records after this one name by its hash; written once each.

    Attributes:
        sha256: SHA-256 of `text` in UTF-8.
        text: The JSON shape that DCAP tools exchange.
    """

    sha256: Hex32
    text: str


class WarrantSigned(CustodianEntry, frozen=True, kw_only=True, tag="warrant-signed"):
    """A node of the party proved itself and got a warrant.

    Attributes:
        terms: What was granted.
        epoch_new: Whether this node took the place of the one before; else its own
            warrant was renewed.
        testimony: What it showed.
    """

    terms: WarrantTerms
    epoch_new: bool
    testimony: Testimony


class WarrantNoted(CustodianEntry, frozen=True, kw_only=True, tag="warrant-noted"):
    """A node of another party proved itself here, for its share of a state key.

    Attributes:
        testimony: What it showed, its party's warrant with it.
    """

    testimony: Testimony


class NodeRefused(CustodianEntry, frozen=True, kw_only=True, tag="node-refused"):
    """A node that had proved itself was refused what it asked for.

    Attributes:
        code: Why, for machines.
        reason: Why, for people.
        testimony: What it showed.
    """

    code: _Code
    reason: _Line
    testimony: Testimony


class KeyAdded(CustodianEntry, frozen=True, kw_only=True, tag="key-added"):
    """A key came into the custodian's keeping, new or brought from elsewhere."""

    key_id: _KeyId
    key_kind: KeyKind
    label: _Label


class KeyRotated(CustodianEntry, frozen=True, kw_only=True, tag="key-rotated"):
    """A new key took the place of one; that is released to plans that name it."""

    key_id: _KeyId
    key_kind: KeyKind
    label: _Label
    replaces: _KeyId


class KeyRevoked(CustodianEntry, frozen=True, kw_only=True, tag="key-revoked"):
    """A key was destroyed here; all others were sealed anew.

    Attributes:
        key_id: The key.
        key_kind: Its kind.
        label: Its label.
        generation: The generation of the keyring that seals the others from now on.
    """

    key_id: _KeyId
    key_kind: KeyKind
    label: _Label
    generation: _Count


class KeyReleased(CustodianEntry, frozen=True, kw_only=True, tag="key-released"):
    """Keys were released to a node that had proved itself.

    Attributes:
        run_id: Its run.
        plan_hash: Its plan.
        role: Its role.
        party: Its party.
        epoch: The epoch of its warrant.
        tls_key_sha256: Which node.
        encryption_key: To which key they were sealed, X25519.
        key_ids: Which keys.
    """

    run_id: RunId
    plan_hash: Bytes32
    role: Role
    party: Name
    epoch: _Count
    tls_key_sha256: Hex32
    encryption_key: Bytes32
    key_ids: Annotated[tuple[_KeyId, ...], Meta(min_length=1, max_length=8)]


class MarkRewound(CustodianEntry, frozen=True, kw_only=True, tag="mark-rewound"):
    """An operator let a run go back behind its mark.

    Attributes:
        run_id: The run.
        round: Of the mark that counts no more.
        state: Of the mark that counts no more.
        audit_head: Of the mark that counts no more, where it had one.
    """

    run_id: RunId
    round: Annotated[int, Meta(ge=0, le=2**31)]
    state: Bytes32
    audit_head: Bytes32 | None


AnyCustodianEntry = (
    CustodianOpened
    | ConsentGiven
    | ConsentWithdrawn
    | CollateralKept
    | WarrantSigned
    | WarrantNoted
    | NodeRefused
    | KeyAdded
    | KeyRotated
    | KeyRevoked
    | KeyReleased
    | MarkRewound
)
