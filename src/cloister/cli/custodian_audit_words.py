"""A custodian's records in sentences, for people who read no JSON."""

from __future__ import annotations

from typing import assert_never

from cloister.custody.audit_records import (
    AnyCustodianEntry,
    CollateralKept,
    ConsentGiven,
    ConsentWithdrawn,
    CustodianOpened,
    KeyAdded,
    KeyReleased,
    KeyRevoked,
    KeyRotated,
    MarkRewound,
    NodeRefused,
    WarrantNoted,
    WarrantSigned,
)
from cloister.ratls.refusals import one_line

_SHORT_DIGITS = 16


def custodian_words_of(entry: AnyCustodianEntry) -> tuple[str, str]:
    """Returns who it was about and what happened, on a line for any terminal."""
    who, what = _words(entry)
    return one_line(who), one_line(what)


def _words(entry: AnyCustodianEntry) -> tuple[str, str]:
    who = "custodian"
    match entry:
        case CustodianOpened():
            who, what = entry.party, "The custodian began its records."
        case ConsentGiven():
            who, what = entry.run_id, _consented(entry)
        case ConsentWithdrawn():
            who = entry.run_id
            what = f"The party withdrew its consent to {_short(entry.plan_hash)}."
        case CollateralKept():
            what = (
                "What the maker of a platform says of its kind was kept, to judge"
                f" evidence by ({entry.sha256[:_SHORT_DIGITS]})."
            )
        case WarrantSigned():
            terms = entry.terms
            who = terms.party
            what = (
                f"{'A new node' if entry.epoch_new else 'The same node'} proved itself"
                f" and was warranted as {terms.role} of {terms.run_id}, epoch"
                f" {terms.epoch}."
            )
        case WarrantNoted():
            who = entry.testimony.said.client_party
            what = (
                f"Its {entry.testimony.said.client_role} node proved itself here, for a"
                f" share of its state's key in {entry.testimony.said.run_id}."
            )
        case NodeRefused():
            who = entry.testimony.said.client_party
            what = (
                f"A node that had proved itself was refused: {entry.reason}"
                f" ({entry.code})"
            )
        case _:
            who, what = _key_words(entry)
    return who, what


def _key_words(
    entry: KeyAdded | KeyRotated | KeyRevoked | KeyReleased | MarkRewound,
) -> tuple[str, str]:
    match entry:
        case KeyAdded():
            return "operator", f"The {entry.key_kind} key {entry.key_id} was added."
        case KeyRotated():
            return "operator", (
                f"The {entry.key_kind} key {entry.key_id} took the place of"
                f" {entry.replaces}."
            )
        case KeyRevoked():
            return "operator", f"The {entry.key_kind} key {entry.key_id} was destroyed."
        case KeyReleased():
            return entry.party, (
                f"Released to its {entry.role}, epoch {entry.epoch} of {entry.run_id}:"
                f" {', '.join(entry.key_ids)}."
            )
        case MarkRewound():
            return "operator", (
                f"The run {entry.run_id} was let go back behind round {entry.round}."
            )
        case _:
            assert_never(entry)


def _consented(entry: ConsentGiven) -> str:
    before = entry.supersedes
    instead = "" if before is None else f", in the place of {_short(before)}"
    return f"The party consented to the plan {_short(entry.plan_hash)}{instead}."


def _short(digest: bytes) -> str:
    return digest.hex()[:_SHORT_DIGITS]
