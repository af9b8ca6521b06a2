"""The site file: what one node alone knows; unhashed, and trusted by nobody.

Every path is taken relative to the site file. Whatever stands here can at worst keep
the node from working: what is true is decided by the plan and by verification.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloister.errors import ConfigError
from cloister.plan.collateral_section import CollateralSection
from cloister.plan.places import Address, PathText, parse_address
from cloister.plan.plan import Name
from cloister.plan.toml import read_toml

__all__ = [
    "Address",
    "Addresses",
    "CollateralSection",
    "CustodianSection",
    "MirrorSection",
    "Paths",
    "PlatformKind",
    "PlatformSection",
    "Site",
    "StateMedium",
    "parse_address",
    "read_site",
]

# The words of `storage.mirror`, which this room does not know.
StateMedium = Literal["file", "persistent-memory"]
PlatformKind = Literal["simulated-sgx", "simulated-tdx", "gramine", "tdx"]


class PlatformSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[platform]``: where this node's evidence comes from.

    A simulated platform has its keys in a directory; a real one has its own.
    """

    kind: PlatformKind
    directory: PathText | None = None

    def __post_init__(self) -> None:
        simulated = self.kind.startswith("simulated-")
        if simulated != (self.directory is not None):
            raise ConfigError(
                "the platform and its directory do not fit",
                code="platform-directory",
                expected="[platform] directory for a simulated platform, and for no"
                " other",
                got=f"{self.kind!r} {'without' if simulated else 'with'} a directory",
            )


class Addresses(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[addresses]``: the server's two ports; it listens there, workers call there."""

    enrolment: str
    training: str

    def __post_init__(self) -> None:
        if parse_address(self.enrolment) == parse_address(self.training):
            raise ConfigError(
                "both ports have one address",
                code="address-repeats",
                expected="different ports for enrolment and training",
                got=self.training,
            )


class Paths(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[paths]``: where this node finds its data and leaves its run."""

    runs: PathText
    data: PathText | None = None


class MirrorSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[mirror]``: where this node keeps its sealed state, and what that lies on.

    Attributes:
        directory: Has a directory for each run; None for ``state`` in the run's own.
        medium: A file, or mapped persistent memory.
    """

    directory: PathText | None = None
    medium: StateMedium = "file"


class CustodianSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[custodian]``: where this party's custodian listens.

    The party's key lies beside a node only where the plan admits the node by that key.
    """

    address: str
    party_key: PathText | None = None

    def __post_init__(self) -> None:
        parse_address(self.address)


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole site file.

    A node proves itself in one way: by its platform's evidence, or by its party's key.
    Which one the plan says; the node is not built if the other stands here.

    Attributes:
        party: The node's party.
        collateral: How it judges others' evidence.
        addresses: The server's ports; None for a node that never meets it.
        paths: What it reads and writes.
        custodian: Its own party's.
        platform: Where its evidence comes from.
        mirror: Where it keeps its state.
        shares: Where the custodians of other parties listen that hold a share of this
            node's state key: ``HOST:PORT`` by party.
        patience_seconds: How long it waits for what is not there yet.
    """

    party: Name
    collateral: CollateralSection
    paths: Paths
    custodian: CustodianSection
    addresses: Addresses | None = None
    platform: PlatformSection | None = None
    mirror: MirrorSection = MirrorSection()
    shares: dict[Name, str] = {}
    patience_seconds: Annotated[float, Meta(gt=0, le=86400)] = 120.0

    def __post_init__(self) -> None:
        for address in self.shares.values():
            parse_address(address)
        # A key that is not needed on a host is not to be there.
        if (self.platform is None) == (self.custodian.party_key is None):
            raise ConfigError(
                "a node proves itself in one way",
                code="site-proof",
                expected="exactly one of [platform] and [custodian] party_key",
                got="neither" if self.platform is None else "both",
                remedy="[platform] where the plan says admit = 'attested', party_key"
                " where it says 'identity'.",
            )


def read_site(path: Path) -> Site:
    """Returns the site file at `path`.

    Raises:
        ConfigError: If the file is missing or any value does not fit.
    """
    return read_toml(path, Site, what="site file")
