"""A run's records in sentences, for people who read no JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from cloister.cli.attendance_words import names_words
from cloister.federation.audit_records import (
    AdmissionWithdrawn,
    AnyEntry,
    CollateralUsed,
    ModelSealed,
    NodeAdmitted,
    NodeRefused,
    RefusalsCounted,
    RoundCompleted,
    RunFailed,
    RunOpened,
    ServerIntroduced,
    WarrantRenewed,
)
from cloister.ratls.refusals import one_line

Words = tuple[str, str]
"""Who, and what happened."""

_SHORT_DIGITS = 16
_SERVER = "server"


def words_of(entry: AnyEntry) -> Words:
    """Returns who did what, on one line that does nothing to a terminal."""
    who, what = _words(entry)
    return one_line(who), one_line(what)


def rounds_words(rounds: Sequence[RoundCompleted]) -> Words:
    """Returns the words for rounds that follow each other; there is one at least.

    Not all need have had the same parties: who took part in any is named.
    """
    first, last = rounds[0], rounds[-1]
    parties = dict.fromkeys(it.party for each in rounds for it in each.participants)
    what = (
        f"Round {last.round} was completed and countersigned"
        if first.round == last.round
        else f"Rounds {first.round} to {last.round} were completed and countersigned"
    )
    least, most = (bound(len(it.participants) for it in rounds) for bound in (min, max))
    # Where it was always all of them, there is nothing to add.
    if least < len(parties):
        what += f", by {least}" + (f" to {most}" if least < most else "")
        what += " of them each"
    return one_line(names_words(list(parties))), f"{what}."


def _words(entry: AnyEntry) -> Words:
    who = _SERVER
    match entry:
        case RunOpened():
            who = "all parties"
            what = (
                f"The run {entry.run_id} was opened under the plan"
                f" {entry.plan_hash.hex()[:_SHORT_DIGITS]}, to which"
                f" {len(entry.consents)} parties consented."
            )
        case CollateralUsed():
            what = (
                "What the maker of a platform says of its kind was kept, to judge"
                f" evidence by ({entry.sha256[:_SHORT_DIGITS]})."
            )
        case ServerIntroduced():
            who = entry.warrant.terms.party
            what = _introduced(entry)
        case WarrantRenewed():
            who = entry.warrant.terms.party
            what = (
                f"Its server's warrant was renewed, epoch {entry.warrant.terms.epoch}."
            )
        case RoundCompleted():
            who, what = rounds_words((entry,))
        case ModelSealed():
            who = names_words([it.party for it in entry.reports])
            what = (
                f"The model of {entry.rounds} rounds was sealed to"
                f" {', '.join(entry.recipients)}: {entry.size_bytes} bytes, sha256"
                f" {entry.sha256}."
            )
        case _:
            who, what = _node_words(entry)
    return who, what


def _node_words(
    entry: NodeAdmitted
    | NodeRefused
    | RefusalsCounted
    | AdmissionWithdrawn
    | RunFailed,
) -> Words:
    match entry:
        case NodeAdmitted():
            return entry.testimony.said.client_party, _admitted(entry)
        case NodeRefused():
            where = "at the door" if entry.where == "enrolment" else "while it trained"
            return entry.party, (
                f"A node of the {entry.role} was refused {where}: {entry.reason}"
                f" ({entry.code})"
            )
        case RefusalsCounted():
            return entry.party, f"{entry.count} more refusals came too fast to be told."
        case AdmissionWithdrawn():
            return entry.party, (
                f"The admission of node {entry.tls_key_sha256[:_SHORT_DIGITS]} was"
                f" withdrawn: {entry.reason} ({entry.code})"
            )
        case RunFailed():
            return _SERVER, f"The server gave up: {entry.reason} ({entry.code})"
        case _:
            assert_never(entry)


def _introduced(entry: ServerIntroduced) -> str:
    began = (
        f"went on with the log after round {entry.completed}"
        if entry.restart
        else "began the log"
    )
    epoch = entry.warrant.terms.epoch
    return f"A server proved itself, epoch {epoch}, and {began}."


def _admitted(entry: NodeAdmitted) -> str:
    warrant, verdict = entry.testimony.warrant, entry.verdict
    epoch = "" if warrant is None else f", epoch {warrant.terms.epoch},"
    if verdict.get("admit") == "attested":
        simulated = "simulated " if verdict.get("simulated") else ""
        how = (
            f"by evidence of a {simulated}{str(verdict.get('tee')).upper()} platform"
            f" ({verdict.get('tcb_status')})"
        )
    else:
        how = "by its party's key alone"
    return f"A node{epoch} was admitted {how}, up to round {entry.last_round}."
