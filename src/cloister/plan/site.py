"""The site file: what one node alone knows; unhashed, and trusted by nobody.

Every path is taken relative to the site file. Whatever stands here can at worst keep
the node from working: what is true is decided by the plan and by verification.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from typing_extensions import override

from cloister.errors import ConfigError
from cloister.plan.plan import Name
from cloister.plan.toml import read_toml

PlatformKind = Literal["simulated-sgx", "simulated-tdx"]
# A path: no NUL, which no file system has; and not without end.
PathText = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", max_length=4096)]
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a port is found."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class PlatformSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[platform]``: where this node's evidence comes from."""

    kind: PlatformKind
    directory: PathText
    trust_root: PathText


class CollateralSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[collateral]``: where Intel's word on a peer's platform comes from.

    Exactly one of a directory of files and a service: the ``https://`` address of a
    caching one (PCCS), or ``intel`` for Intel's own (PCS).
    """

    directory: PathText | None = None
    pccs: PathText | None = None
    ca_file: PathText | None = None
    cache: PathText | None = None
    release: Literal["standard", "early"] | None = None
    minimum_evaluation_number: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None

    def __post_init__(self) -> None:
        if (self.directory is None) == (self.pccs is None):
            raise ConfigError(
                "a node needs one source of collateral",
                code="collateral-source",
                expected="exactly one of [collateral] directory and pccs",
                got="both" if self.directory else "neither",
            )
        if self.pccs is not None and self.cache is None:
            raise ConfigError(
                "collateral from a service needs a cache",
                code="collateral-source",
                expected="[collateral] cache, a directory",
            )
        fetching = (
            self.cache,
            self.ca_file,
            self.release,
            self.minimum_evaluation_number,
        )
        if self.directory is not None and any(it is not None for it in fetching):
            raise ConfigError(
                "a setting would be ignored",
                code="collateral-source",
                expected="[collateral] cache, ca_file, release and"
                " minimum_evaluation_number only with pccs",
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


class Custodian(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[custodian]``: who signs this node's warrant."""

    insecure_local_key: PathText


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole site file."""

    party: Name
    platform: PlatformSection
    collateral: CollateralSection
    addresses: Addresses
    paths: Paths
    custodian: Custodian
    patience_seconds: Annotated[float, Meta(gt=0, le=86400)] = 120.0


def read_site(path: Path) -> Site:
    """Returns the site file at `path`.

    Raises:
        ConfigError: If the file is missing or any value does not fit.
    """
    return read_toml(path, Site, what="site file")


def parse_address(text: str, *, lowest_port: int = 1) -> Address:
    """Returns ``HOST:PORT`` as an address; IPv6 hosts stand in brackets.

    Args:
        text: The address.
        lowest_port: 0 where "any free port" makes sense.

    Raises:
        ConfigError: If `text` is not of that form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not lowest_port <= int(match["port"]) < 65536:
        raise ConfigError(
            "an address is malformed",
            code="address-invalid",
            expected=f"HOST:PORT with a port from {lowest_port} to 65535",
            got=repr(text[:80]),
        )
    return Address(match["host"], int(match["port"]))
