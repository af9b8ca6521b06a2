"""How a node proves itself: its platform, or its party's key, as the plan says."""

from __future__ import annotations

import sys

from structlog.typing import FilteringBoundLogger

from cloister.attestation.evidence import Evidence, parse_evidence
from cloister.attestation.platforms import Platform
from cloister.attestation.platforms.gramine import open_gramine_platform
from cloister.attestation.platforms.measurement import (
    measure_installation,
    node_measurement,
    running_interpreter,
)
from cloister.attestation.platforms.simulated.platform import load_simulated_platform
from cloister.attestation.platforms.tdx import open_tdx_platform
from cloister.attestation.policy import Policy, appraise
from cloister.attestation.reports import Tee
from cloister.cli.hardening import refuse_swap, warn_of_swap
from cloister.cli.places import Place
from cloister.cli.sources import Sources
from cloister.custody.party_key import read_party_key
from cloister.errors import ConfigError, VerificationError
from cloister.plan.keys import format_party_key
from cloister.plan.site import PlatformSection
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.proofs import EvidenceProver, IdentityProver, Prover

_SIMULATED: dict[str, Tee] = {"simulated-sgx": "sgx", "simulated-tdx": "tdx"}
_MEASUREMENTS: dict[Tee, tuple[str, ...]] = {
    "sgx": ("mr_enclave",),
    "tdx": ("mrtd", "rtmr0", "rtmr1", "rtmr2"),
}
_REPORT_DATA = bytes(64)


def open_prover(place: Place, sources: Sources, *, log: FilteringBoundLogger) -> Prover:
    """Returns what the node proves itself with: what its site has and the plan wants.

    Args:
        place: The node's plan and site.
        sources: The plan's source files, which are measured.
        log: Is told what was measured.

    Raises:
        CloisterError: If the site has something else, or it cannot be used.
    """
    section = place.site.platform
    if (section is None) != (place.party.admit == "identity"):
        raise ConfigError(
            f"{place.site.party!r} proves itself in another way than the plan asks for",
            code="proof-differs",
            expected=f"a site for admit = {place.party.admit!r}",
            got="[custodian] party_key" if section is None else "[platform]",
        )
    if section is None:
        return _party_prover(place, log)
    _check_reality(place, section)
    _check_swap(section, log)
    platform = _open_platform(place, section, sources)
    log.info(
        "node-measured",
        role=place.party.role,
        tee=platform.tee,
        simulated=platform.simulated,
        measurements=_measured(parse_evidence(platform.quote(_REPORT_DATA))),
    )
    return EvidenceProver(platform=platform)


def warn_if_refusable(
    platform: Platform, appraiser: Appraiser, policy: Policy, log: FilteringBoundLogger
) -> None:
    """Says early what the peers will say; the peers decide, not this.

    Raises:
        CloisterError: If there is no collateral for this platform.
    """
    try:
        claims = appraiser.verify(
            platform.quote(_REPORT_DATA), expected_report_data=_REPORT_DATA
        )
        appraise(claims, policy)
    except VerificationError as error:
        log.warning("own-evidence-unwanted", code=error.code, reason=str(error))


def _party_prover(place: Place, log: FilteringBoundLogger) -> IdentityProver:
    path = place.site.custodian.party_key
    if path is None:
        raise RuntimeError("the site file was read without its checks")
    key = read_party_key(place.at_site(path))
    if format_party_key(key) != place.party.key:
        raise ConfigError(
            f"this is not the key of {place.site.party!r} in the plan",
            code="party-key-differs",
            expected=place.party.key,
            got=format_party_key(key),
            remedy="It is [custodian] party_key in site.toml.",
        )
    log.info("node-unmeasured", role=place.party.role, admit="identity")
    return IdentityProver(key=key)


def _check_reality(place: Place, section: PlatformSection) -> None:
    """Refuses a simulation where the plan wants a machine, and the reverse."""
    simulated = section.kind in _SIMULATED
    root = place.plan.policy.server.root
    if simulated != root.startswith("simulated:"):
        raise ConfigError(
            "the node's platform is not one that the plan accepts",
            code="platform-differs",
            expected=f"a platform under {root}",
            got=f"[platform] kind = {section.kind!r}",
        )


def _check_swap(section: PlatformSection, log: FilteringBoundLogger) -> None:
    # A TD's swap is in the clear on the host's disk; an enclave's pages are encrypted.
    if section.kind == "tdx":
        refuse_swap(log=log)
    elif section.kind == "simulated-tdx":
        warn_of_swap(log=log)


def _open_platform(
    place: Place, section: PlatformSection, sources: Sources
) -> Platform:
    if section.kind == "gramine":
        return open_gramine_platform()
    if section.kind == "tdx":
        return open_tdx_platform()
    if section.directory is None:
        raise RuntimeError("the site file was read without its checks")
    installation = measure_installation(
        interpreter=running_interpreter(), search_path=tuple(sys.path)
    )
    return load_simulated_platform(
        place.at_site(section.directory),
        tee=_SIMULATED[section.kind],
        measurement=node_measurement(
            installation, sources=sources.measured, role=place.party.role
        ),
    )


def _measured(evidence: Evidence) -> dict[str, str]:
    return {
        name: getattr(evidence.report, name).hex()
        for name in _MEASUREMENTS[evidence.tee]
    }
