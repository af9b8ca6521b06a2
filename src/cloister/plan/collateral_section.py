"""What a node and a custodian both need to verify evidence: the section of their files.

Nothing in it is believed: the root is compared with the plan's, and collateral is
verified under it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloister.errors import ConfigError
from cloister.plan.places import PathText


class CollateralSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[collateral]``: where Intel's word on a peer's platform comes from.

    Exactly one of a directory of files and a service: the ``https://`` address of a
    caching one (PCCS), or ``intel`` for Intel's own (PCS).

    The trust root is a certificate (DER); it is there if and only if the plan's root is
    not Intel's own, and must then be the one that the plan pins. Whoever reads the plan
    checks that.
    """

    trust_root: PathText | None = None
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
