"""The custodian's file: what a party's custodian knows besides its register.

It lies at the party's own site, with the party's key. Every path is taken relative to
it. To which plans the party consented is not written here: that is in the register.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from cloister.errors import ConfigError
from cloister.plan.collateral_section import CollateralSection
from cloister.plan.places import PathText, parse_address
from cloister.plan.plan import Name
from cloister.plan.toml import read_toml

# A warrant is renewed at half of its life, so a shorter one would be renewed for ever.
SHORTEST_WARRANT: Final = timedelta(minutes=1)


class KeyringSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[keyring]``: what seals the party's keys, and what opens that.

    With neither an identity nor a passphrase's file, a person is asked for the
    passphrase at the terminal.

    Attributes:
        file: The keyring.
        identity: A file with the age identity that opens it.
        passphrase_file: A file with the passphrase that opens it, on one line.
    """

    file: PathText
    identity: PathText | None = None
    passphrase_file: PathText | None = None

    def __post_init__(self) -> None:
        if self.identity is not None and self.passphrase_file is not None:
            raise ConfigError(
                "a keyring is opened in one way",
                code="keyring-lock",
                expected="at most one of [keyring] identity and passphrase_file",
                got="both",
            )


class CustodianSite(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """A whole custodian's file.

    Attributes:
        party: Whose custodian this is.
        address: ``HOST:PORT`` where it listens for the party's node.
        key: The party's private key, Ed25519, PEM.
        database: The register: consents, warrants, marks, keys and records.
        keyring: What seals the keys in it.
        logs: A directory.
        collateral: How it verifies the node's evidence.
        warrant_hours: Life of a warrant; from a minute to a week.
        policy: A policy of the party's own node, which can only tighten the plan's.
    """

    party: Name
    address: str
    key: PathText
    database: PathText
    keyring: KeyringSection
    logs: PathText
    collateral: CollateralSection
    warrant_hours: Annotated[float, Meta(gt=0, le=168)] = 24.0
    policy: PathText | None = None

    def __post_init__(self) -> None:
        parse_address(self.address)
        if timedelta(hours=self.warrant_hours) < SHORTEST_WARRANT:
            raise ConfigError(
                "warrant_hours is too short for a warrant",
                code="warrant-life",
                expected=f"at least {SHORTEST_WARRANT // timedelta(seconds=1)} seconds",
                got=f"{self.warrant_hours * 3600:g} seconds",
                remedy="Correct warrant_hours in custodian.toml.",
            )


def read_custodian_site(path: Path) -> CustodianSite:
    """Returns the custodian's file at `path`.

    Raises:
        ConfigError: If the file is missing or any value does not fit.
    """
    return read_toml(path, CustodianSite, what="custodian's file")
