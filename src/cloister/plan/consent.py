"""Consents: a party's signed word that it agrees to one plan.

A plan lies on a host's disk, so nothing in it proves who wrote it. A consent is signed
with the party's key from the plan and names the plan's hash; it is void for any other
plan, run or party. Consents are public: they lie beside the plan, one file a party, and
every node checks all of them before it does anything else. So attested code vouches
that every party agreed.

Format and signed bytes: ``docs/spec/plan.md``. Whether a party took its consent back is
not known here: that is its custodian's business.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import cbor2
import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.plan.digest import Digest, format_digest
from cloister.plan.keys import format_party_key, parse_party_key
from cloister.plan.plan import Name, Party, Plan, PlanHash, RunId, plan_hash

# A consent is some 400 bytes; more than this is not one.
MAX_CONSENT_BYTES = 4096
# The clocks of the parties' sites may differ by this much.
FUTURE_TOLERANCE = timedelta(minutes=10)

_LABEL = "cloister/consent/1"
_DIRECTORY_DIGITS = 16
_SIGN = "Sign it with: cloister plan sign PLAN."


class Consent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One party's agreement to one plan.

    Attributes:
        format: Version of this form.
        run_id: The run.
        plan_hash: The plan.
        party: Who agrees.
        signed_at: Unix time, by the clock of the party's site.
        signature: Ed25519 by the party's key, lower-case hex.
    """

    format: Literal[1]
    run_id: RunId
    plan_hash: Digest
    party: Name
    signed_at: Annotated[int, Meta(ge=0, le=2**53)]
    signature: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consents:
    """Everybody's valid consent to one plan; made by `check_consents` alone.

    Attributes:
        by_party: The consents, in the order of the plan's parties.
        newest: When the last party signed: time was not earlier than that.
    """

    by_party: Mapping[str, Consent]
    newest: datetime


def sign_consent(
    plan: Plan, *, party: str, key: Ed25519PrivateKey, at: datetime
) -> Consent:
    """Returns the consent of `party` to `plan`.

    Raises:
        ConfigError: If the plan has no such party, or names another key for it.
    """
    wanted = plan.find_party(party).key
    if format_party_key(key) != wanted:
        raise ConfigError(
            f"this is not the key of {party!r} in the plan",
            code="consent-key",
            expected=wanted,
            got=format_party_key(key),
            remedy="Put this key into the plan, or sign with the custodian that has"
            " the other.",
        )
    signed_at = int(at.timestamp())
    digest = plan_hash(plan)
    signed = _signed_bytes(plan.run_id, digest, party, signed_at)
    return Consent(
        format=1,
        run_id=plan.run_id,
        plan_hash=format_digest(digest),
        party=party,
        signed_at=signed_at,
        signature=key.sign(signed).hex(),
    )


def verify_consent(
    unverified: Consent, *, plan: Plan, party: str, at: datetime
) -> Consent:
    """Returns a consent that holds.

    Steps: (1) it has the form of version 1; (2) it is for this run and plan; (3) it is
    the party's; (4) the party signed it; (5) that was not in the future.

    Args:
        unverified: The consent as it came.
        plan: The plan.
        party: Whose consent is wanted; a party of the plan.
        at: The verifier's time.

    Raises:
        ConfigError: If the plan has no such party.
        StorageError: If step 1 fails.
        VerificationError: If any other step fails.
    """
    return _verify(
        unverified,
        terms=_Terms(run_id=plan.run_id, digest=plan_hash(plan), at=at),
        party=plan.find_party(party),
    )


def verify_consents(
    unverified: Iterable[Consent], *, plan: Plan, at: datetime
) -> tuple[Consent, ...]:
    """Returns everybody's consent, if each holds; the steps are `verify_consent`'s.

    The plan is hashed once: of a thousand parties that takes some milliseconds.

    Args:
        unverified: One for each party, in the plan's order.
        plan: The plan.
        at: The verifier's time.

    Raises:
        ValueError: If there are more or fewer than parties; a bug of the caller.
        StorageError: If one is malformed.
        VerificationError: If one does not hold.
    """
    terms = _Terms(run_id=plan.run_id, digest=plan_hash(plan), at=at)
    return tuple(
        _verify(consent, terms=terms, party=party)
        for party, consent in zip(plan.party, unverified, strict=True)
    )


def check_consents(plan: Plan, plan_path: Path, *, at: datetime) -> Consents:
    """Returns the consents of all parties, read from beside the plan.

    Files of the directory that are no party's are not looked at: they say nothing.

    Args:
        plan: The plan.
        plan_path: Its file.
        at: The verifier's time.

    Raises:
        ConfigError: If a party's consent is missing.
        StorageError: If a file is unreadable or no consent.
        VerificationError: If a consent does not hold.
    """
    directory = consents_directory(plan_path, plan)
    terms = _Terms(run_id=plan.run_id, digest=plan_hash(plan), at=at)
    found: dict[str, Consent] = {}
    missing: list[str] = []
    for party in plan.party:
        unverified = _read_if_there(directory / f"{party.name}.json")
        if unverified is None:
            missing.append(party.name)
            continue
        found[party.name] = _verify(unverified, terms=terms, party=party)
    if missing:
        raise ConfigError(
            f"the plan is not signed by {', '.join(missing)}",
            code="consent-missing",
            expected=f"a consent of every party in {directory}",
            got=f"{len(found)} of {len(plan.party)}",
            remedy=_SIGN,
        )
    newest = max(consent.signed_at for consent in found.values())
    return Consents(
        by_party=MappingProxyType(found), newest=datetime.fromtimestamp(newest, UTC)
    )


def consents_directory(plan_path: Path, plan: Plan) -> Path:
    """Returns where the consents to `plan` lie: beside it, under its hash.

    So the consents to a plan and to its amendments lie side by side.
    """
    return plan_path.parent / "consents" / plan_hash(plan).hex()[:_DIRECTORY_DIGITS]


def format_consent(consent: Consent) -> bytes:
    """Returns `consent` as its file holds it: JSON, one key a line."""
    return msgspec.json.format(msgspec.json.encode(consent), indent=2) + b"\n"


def parse_consent(text: bytes, *, what: str = "a consent") -> Consent:
    """Returns the consent in `text`; it is not verified.

    Args:
        text: What a consent's file holds.
        what: What it is to the user, for messages.

    Raises:
        StorageError: If it is too large or does not fit.
    """
    if len(text) > MAX_CONSENT_BYTES:
        raise StorageError(
            f"{what} is too large",
            code="consent-malformed",
            expected=f"at most {MAX_CONSENT_BYTES} bytes",
            got="more",
        )
    try:
        # msgspec leaves the bytes of texts it skips unread.
        return msgspec.json.decode(text.decode(), type=Consent)
    except (ValueError, RecursionError) as error:
        raise StorageError(
            f"{what} is malformed",
            code="consent-malformed",
            expected="a consent of version 1, in JSON",
            got=str(error)[:200],
            remedy="Ask the party for its consent again.",
        ) from error


def read_consent(path: Path) -> Consent:
    """Returns the consent in the file at `path`; it is not verified.

    Raises:
        StorageError: If the file is missing, too large, or no consent.
    """
    consent = _read_if_there(path)
    if consent is None:
        raise StorageError(
            f"cannot read the consent {path}",
            code="consent-unreadable",
            got="no such file",
        )
    return consent


def write_consent(consent: Consent, directory: Path) -> Path:
    """Writes `consent` into `directory`, whole or not at all; returns the file.

    An earlier consent of the same party to the same plan is replaced.

    Raises:
        StorageError: If it cannot be written.
    """
    path = directory / f"{consent.party}.json"
    name: str | None = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".consent-", dir=directory)
        with os.fdopen(descriptor, "wb") as file:
            file.write(format_consent(consent))
            file.flush()
            os.fchmod(file.fileno(), 0o644)  # public, and read by other users' nodes
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        if name is not None:
            with contextlib.suppress(OSError):
                Path(name).unlink()
        raise StorageError(
            f"cannot write the consent {path}",
            code="consent-unwritable",
            got=error.strerror or "an error",
            remedy="Make room there, or make the directory writable.",
        ) from error
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What all consents to one plan have in common, and the verifier's time."""

    run_id: str
    digest: PlanHash
    at: datetime


def _verify(unverified: Consent, *, terms: _Terms, party: Party) -> Consent:
    """The steps of `verify_consent`."""
    name = party.name
    # Step 1: the form. It may not have come out of `parse_consent`.
    consent = parse_consent(format_consent(unverified))
    # Steps 2 and 3: what, and whose
    for what, wanted, got in (
        ("run", terms.run_id, consent.run_id),
        ("plan", format_digest(terms.digest), consent.plan_hash),
        ("party", name, consent.party),
    ):
        if got != wanted:
            raise VerificationError(
                f"the consent of {name!r} is for another {what}",
                code="consent-foreign",
                expected=wanted,
                got=got,
                remedy="Every change of the plan needs everybody's consent again."
                f" {_SIGN}",
            )
    # Step 4: who signed
    signed = _signed_bytes(terms.run_id, terms.digest, name, consent.signed_at)
    try:
        parse_party_key(party.key).verify(bytes.fromhex(consent.signature), signed)
    except InvalidSignature as error:
        raise VerificationError(
            f"the consent of {name!r} is not signed by its party",
            code="consent-signature",
            expected="a signature by the party's key in the plan",
            got="another one",
            remedy="Ask the party for its consent again.",
        ) from error
    # Step 5: when
    if consent.signed_at > (terms.at + FUTURE_TOLERANCE).timestamp():
        raise VerificationError(
            f"the consent of {name!r} was signed in the future",
            code="consent-future",
            expected=f"at most {terms.at.timestamp():.0f} (Unix time) and"
            f" {FUTURE_TOLERANCE // timedelta(minutes=1)} minutes",
            got=str(consent.signed_at),
            remedy="Set the clock of this machine, or of the party's site.",
        )
    return consent


def _read_if_there(path: Path) -> Consent | None:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONSENT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"cannot read the consent {path}",
            code="consent-unreadable",
            got=error.strerror or "an error",
        ) from error
    return parse_consent(text, what=f"the consent {path}")


def _signed_bytes(run_id: str, digest: bytes, party: str, signed_at: int) -> bytes:
    form = [_LABEL, run_id, digest, party, signed_at]
    return cbor2.dumps(form, canonical=True)
