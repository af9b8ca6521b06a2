"""Signing a plan: a party's consent, remembered by its custodian, shown to the others.

The consent beside the plan is for the nodes, which check everybody's. What counts for
the party's own nodes is its custodian's register.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.cli.custodians import open_register
from cloister.cli.places import CustodianPlace, custodians_beside, read_custodian_place
from cloister.cli.quote_file import read_bytes
from cloister.cli.trust import read_root
from cloister.custody.party_key import read_party_key
from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.plan.consent import (
    Consent,
    check_consents,
    consents_directory,
    read_consent,
    sign_consent,
    verify_consent,
    write_consent,
)
from cloister.plan.plan import Plan, parse_plan, plan_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """A plan with the very text it was read from.

    Attributes:
        path: The file.
        text: Its content.
        plan: The plan in it.
    """

    path: Path
    text: bytes
    plan: Plan

    @property
    def consents(self) -> Path:
        """Where the consents to this plan lie."""
        return consents_directory(self.path, self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signatures:
    """Who signed a plan, by the consents beside it, in the plan's order.

    Attributes:
        signed: Parties whose consent is there and holds.
        missing: Parties without a consent.
        refused: What is wrong with the consents that do not hold, by party.
    """

    signed: tuple[str, ...]
    missing: tuple[str, ...]
    refused: Mapping[str, CloisterError]


def read_plan_file(path: Path) -> PlanFile:
    """Returns the plan at `path`, read once.

    Raises:
        ConfigError: If it cannot be read or does not fit.
    """
    text = read_bytes(path)
    return PlanFile(path=path, text=text, plan=parse_plan(text))


def signatures(file: PlanFile, *, at: datetime) -> Signatures:
    """Returns who signed a plan, as far as the consents beside it say.

    Raises:
        CloisterError: If a consent is there and does not hold.
    """
    found = _signatures_as_they_are(file, at=at)
    for error in found.refused.values():
        raise error
    return found


def _signatures_as_they_are(file: PlanFile, *, at: datetime) -> Signatures:
    signed, missing, refused = [], [], {}
    for party in file.plan.party:
        path = file.consents / f"{party.name}.json"
        if not path.exists():
            missing.append(party.name)
            continue
        try:
            verify_consent(read_consent(path), plan=file.plan, party=party.name, at=at)
        except CloisterError as error:
            refused[party.name] = error
        else:
            signed.append(party.name)
    return Signatures(signed=tuple(signed), missing=tuple(missing), refused=refused)


def chosen_custodians(
    file: PlanFile, directories: Sequence[Path], *, all_here: bool
) -> tuple[CustodianPlace, ...]:
    """Returns the custodians that are to sign.

    Raises:
        ConfigError: If none is, or one cannot be for this plan.
    """
    paths = list(directories)
    if all_here:
        paths += custodians_beside(file.path)
    if not paths:
        raise ConfigError(
            "nobody is to sign",
            code="custodian-unnamed",
            expected="--custodian DIR, or --all-here with custodians beside the plan",
        )
    places = tuple(read_custodian_place(path) for path in paths)
    for place in places:
        file.plan.find_party(place.party)
        # Now, and not when the first node is refused.
        root = file.plan.policy.server.root
        read_root(place.site.collateral, wanted=root, at=place.at)
    return places


def sign(
    file: PlanFile, places: Sequence[CustodianPlace], *, at: datetime
) -> Signatures:
    """Has each custodian consent to the plan, and shows the consents beside it.

    A consent is shown only after its custodian remembers it. A consent of another party
    that does not hold hinders nobody: these have signed, and are told so.

    Raises:
        CloisterError: If a key is not the plan's, a custodian holds another plan of the
            run, or a file cannot be written. Custodians before that one have signed.
    """
    consents = [
        sign_consent(file.plan, party=it.party, key=read_party_key(it.key_path), at=at)
        for it in places
    ]
    for place, consent in zip(places, consents, strict=True):
        _adopt(file, place, consent, at=at)
    return _signatures_as_they_are(file, at=at)


def sign_all_here(path: Path, *, at: datetime) -> PlanFile:
    """Signs the plan at `path` for every custodian beside it, without a question.

    For one who plays all parties: a demonstration, a benchmark, an example.

    Raises:
        CloisterError: If one of them cannot sign, or somebody is missing then.
    """
    file = read_plan_file(path)
    sign(file, chosen_custodians(file, (), all_here=True), at=at)
    check_consents(file.plan, path, at=at)
    return file


def withdraw(file: PlanFile, place: CustodianPlace, *, at: datetime) -> None:
    """Ends a party's consent to the plan at its custodian, and takes it from beside it.

    Copies of the consent elsewhere are not reached; the custodian warrants no node of
    this plan any more, whoever shows them.

    Raises:
        CloisterError: If the custodian did not consent, or a file cannot be written.
    """
    with open_register(place) as register:
        register.withdraw(plan_hash(file.plan), at=at)
    path = file.consents / f"{place.party}.json"
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"the consent is withdrawn, but {path} cannot be removed",
            code="consent-unwritable",
            got=error.strerror or "an error",
        ) from error


def _adopt(
    file: PlanFile, place: CustodianPlace, consent: Consent, *, at: datetime
) -> None:
    with open_register(place) as register:
        register.adopt(file.text, consent, at=at)
    write_consent(consent, file.consents)
