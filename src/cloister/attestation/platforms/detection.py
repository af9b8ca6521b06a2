"""Finds the hardware that this process runs on. It never finds a simulation.

A simulated platform is chosen by name in the site file, or not at all: a node whose
hardware is missing or broken stops here, instead of going on without protection.
"""

from __future__ import annotations

from pathlib import Path

from cloister.attestation.platforms import Platform
from cloister.attestation.platforms.gramine import (
    GRAMINE_DIRECTORY,
    open_gramine_platform,
)
from cloister.attestation.platforms.tdx import (
    TSM_REPORT_DIRECTORY,
    ReportEntries,
    open_tdx_platform,
)
from cloister.errors import PlatformError


def detect_platform(
    *,
    gramine_directory: Path = GRAMINE_DIRECTORY,
    tsm_directory: Path = TSM_REPORT_DIRECTORY,
    tsm_entries: ReportEntries | None = None,
) -> Platform:
    """Returns the one trusted execution environment that this process runs in.

    What is there must work: a broken one is an error and no reason to look further.

    Args:
        gramine_directory: Gramine's pseudo-directory.
        tsm_directory: The kernel's report directory.
        tsm_entries: Makes and removes report entries; None for the kernel's own.

    Raises:
        PlatformError: If there is none, one that cannot quote, or both.
    """
    gramine, tsm = gramine_directory.is_dir(), tsm_directory.is_dir()
    if gramine and tsm:
        raise PlatformError(
            "this process seems to run in an enclave and in a trust domain",
            code="platform-ambiguous",
            expected="one of them",
            got=f"{gramine_directory} and {tsm_directory}",
            remedy="name the platform in site.toml, or mount only its own files",
        )
    if gramine:
        return open_gramine_platform(gramine_directory)
    if tsm:
        return open_tdx_platform(tsm_directory, entries=tsm_entries)
    raise PlatformError(
        "this process runs in no trusted execution environment",
        code="platform-missing",
        expected=f"Gramine's {gramine_directory} or the kernel's {tsm_directory}",
        remedy="start it with gramine-sgx, or in a TDX guest with Linux 6.7; to try "
        "things out, name a simulated platform in site.toml",
    )
