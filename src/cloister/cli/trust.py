"""What evidence is judged by: a trust root, and where collateral comes from.

Nodes and custodians have the same section ``[collateral]`` for it. Nothing in it is
believed: the plan says which root counts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cloister.attestation.collateral_source import CollateralFiles, CollateralSource
from cloister.attestation.pcs import (
    INTEL_PCS,
    CollateralService,
    PcsClient,
    PcsSettings,
)
from cloister.attestation.trust_root import (
    TrustRoot,
    intel_trust_root,
    preproduction_trust_root,
    simulated_trust_root,
)
from cloister.errors import ConfigError
from cloister.plan.collateral_section import CollateralSection

# An X.509 root is about 1 kB.
_MAX_ROOT_BYTES = 64 * 1024


def read_root(
    section: CollateralSection, *, wanted: str, at: Callable[[str], Path]
) -> TrustRoot:
    """Returns the trust root that a plan names.

    Args:
        section: Says where the certificate of a root that is not built in lies.
        wanted: The root, as the plan's policies name it.
        at: Resolves a path of the section.

    Raises:
        ConfigError: If it is not there, is another one, or would be ignored.
    """
    if wanted == "hardware":
        if section.trust_root is not None:
            raise ConfigError(
                "a setting would be ignored",
                code="root-unused",
                expected="no [collateral] trust_root: Intel's root is built in",
                got=section.trust_root,
                remedy="Remove it; the plan is for hardware.",
            )
        return intel_trust_root()
    if section.trust_root is None:
        raise ConfigError(
            "the plan's trust root is not built in",
            code="root-missing",
            expected=f"[collateral] trust_root, the certificate of {wanted}",
        )
    path = at(section.trust_root)
    der = _read(path)
    preproduction = wanted.startswith("preproduction:")
    root = (preproduction_trust_root if preproduction else simulated_trust_root)(der)
    if root.name != wanted:
        raise ConfigError(
            f"the trust root {path} is not the plan's",
            code="root-differs",
            expected=wanted,
            got=root.name,
        )
    return root


def root_name_in(section: CollateralSection, at: Callable[[str], Path]) -> str:
    """Returns how plans name the root of a section, where no plan says it.

    A root that is not built in is taken for a simulated one.

    Raises:
        ConfigError: If its certificate cannot be used.
    """
    if section.trust_root is None:
        return "hardware"
    return simulated_trust_root(_read(at(section.trust_root))).name


def collateral_source(
    section: CollateralSection,
    root: TrustRoot,
    *,
    at: Callable[[str], Path],
    clock: Callable[[], datetime],
) -> CollateralSource:
    """Returns where collateral comes from.

    Raises:
        CloisterError: If a file that it needs cannot be used.
    """
    if section.directory is not None:
        return CollateralFiles(at(section.directory))
    if section.pccs is None or section.cache is None:
        raise RuntimeError("the section was read without its checks")
    return PcsClient(
        PcsSettings(
            service=INTEL_PCS
            if section.pccs == "intel"
            else CollateralService(address=section.pccs),
            ca_file=at(section.ca_file) if section.ca_file else None,
            release=section.release or "standard",
            minimum_evaluation_number=section.minimum_evaluation_number or 0,
        ),
        root=root,
        cache_directory=at(section.cache),
        clock=clock,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_ROOT_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read the trust root {path}",
            code="root-unreadable",
            expected="the root's certificate (DER)",
            got=error.strerror or "an error",
            remedy="It is [collateral] trust_root in site.toml and custodian.toml.",
        ) from error
