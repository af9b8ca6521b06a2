"""A stand-in custodian that signs with a key file lying beside the node.

It exists so that a simulated deployment runs on one machine, and it anchors nothing:
whoever holds the disk holds the party's key. So it serves simulated plans alone, says
`insecure` in its name, and logs a warning for every warrant.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from structlog.typing import FilteringBoundLogger

from cloister.errors import ConfigError, StorageError
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan, PlanHash, Role
from cloister.plan.plan import plan_hash as plan_hash_of
from cloister.ratls.identity import Spki
from cloister.ratls.warrant import Warrant, WarrantTerms, sign_warrant

WARRANT_LIFE = timedelta(days=1)
_MAX_EPOCH_DIGITS = 15


class InsecureLocalCustodian:
    """Signs warrants with a party's key file; satisfies `federation.WarrantSource`.

    Args:
        plan: The plan; simulated, or nothing is signed.
        key_path: The party's Ed25519 key, PEM.
        clock: The time.
        log: Receives a warning for every warrant.

    Raises:
        ConfigError: If the plan is not simulated, or the key cannot be used.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        key_path: Path,
        clock: Callable[[], datetime],
        log: FilteringBoundLogger,
    ) -> None:
        if not plan.simulated:
            raise ConfigError(
                "a plan on hardware needs a real custodian",
                code="custodian-insecure",
                expected="a custodian at the party's own site",
                got="[custodian] insecure_local_key",
            )
        self._plan = plan
        self._key = _read_key(key_path)
        self._epoch_path = key_path.with_suffix(".epoch")
        self._clock = clock
        self._log = log

    async def warrant(
        self, *, run_id: str, plan_hash: PlanHash, role: Role, party: str, tls_key: Spki
    ) -> Warrant:
        """Returns a warrant of the next epoch.

        Raises:
            ConfigError: If it is not for this custodian's plan and its key's party.
            StorageError: If the epoch cannot be counted on.
        """
        self._check_own(run_id=run_id, digest=plan_hash, role=role, party=party)
        at = self._clock()
        epoch = _next_epoch(self._epoch_path)
        self._log.warning(
            "insecure-warrant",
            epoch=epoch,
            reason="signed here, with a party key on this disk; simulated only",
        )
        terms = WarrantTerms(
            run_id=run_id,
            plan_hash=plan_hash,
            role=role,
            party=party,
            tls_key=tls_key,
            epoch=epoch,
            issued_at=int(at.timestamp()),
            expires_at=int((at + WARRANT_LIFE).timestamp()),
        )
        return sign_warrant(terms, self._key)

    def _check_own(
        self, *, run_id: str, digest: PlanHash, role: Role, party: str
    ) -> None:
        """Refuses to sign what this party never agreed to; no epoch is spent on it."""
        found = self._plan.find_party(party)
        for what, expected, got in (
            ("run", self._plan.run_id, run_id),
            ("plan", plan_hash_of(self._plan).hex(), digest.hex()),
            ("role", found.role, role),
            ("key", found.key, format_party_key(self._key)),
        ):
            if expected != got:
                raise ConfigError(
                    f"no warrant for {party!r}: another {what}",
                    code="warrant-not-ours",
                    expected=expected,
                    got=got,
                    remedy="Plan, site file and party key must be of one deployment.",
                )


def new_insecure_party_key(path: Path) -> str:
    """Writes a fresh party key (PEM, 0600) and returns its public half.

    Raises:
        StorageError: If the file cannot be written or exists.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
    except OSError as error:
        raise StorageError(
            f"cannot write the party key {path}",
            code="key-unwritable",
            got=error.strerror or "an error",
        ) from error
    return format_party_key(key)


def _read_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _bad_key(path, type(error).__name__) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(path, "a key of another kind")
    return key


def _bad_key(path: Path, got: str) -> ConfigError:
    return ConfigError(
        f"cannot use the party key {path}",
        code="party-key-unusable",
        expected="an Ed25519 private key in PEM",
        got=got,
        remedy="It is [custodian] insecure_local_key in site.toml.",
    )


def _next_epoch(path: Path) -> int:
    """Counts on by one, durably, also when two nodes start at once."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read(_MAX_EPOCH_DIGITS + 1)
            if text and not (text.isdigit() and len(text) <= _MAX_EPOCH_DIGITS):
                raise StorageError(
                    f"the epoch file {path} is damaged",
                    code="epoch-damaged",
                    expected="a number",
                    got=repr(text[:20]),
                )
            epoch = int(text or b"0") + 1
            file.seek(0)
            file.write(str(epoch).encode())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"cannot count the epoch in {path}",
            code="epoch-unwritable",
            got=error.strerror or "an error",
        ) from error
    return epoch
