"""Builds a node from its plan and site: joins custody, platform and task.

The order matters. The task's bytes are read once; they are measured, and only then
compiled. The node's keys exist only in this process's memory. The warrant names them,
so it is asked for last.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.attestation.collateral_source import (
    CollateralFiles,
    CollateralSource,
    collateral_for_evidence,
)
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pcs import (
    INTEL_PCS,
    CollateralService,
    PcsClient,
    PcsSettings,
)
from cloister.attestation.platforms.measurement import (
    measure_installation,
    node_measurement,
    running_interpreter,
)
from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.attestation.policy import Policy, appraise
from cloister.attestation.reports import Tee
from cloister.attestation.trust_root import TrustRoot, simulated_trust_root
from cloister.attestation.verify import verify_evidence
from cloister.custody.insecure_local import InsecureLocalCustodian
from cloister.errors import ConfigError, VerificationError
from cloister.federation.task import Task
from cloister.federation.task_loading import load_task, read_task_source
from cloister.federation.warrants import WarrantSource
from cloister.plan.plan import Plan, Role, plan_hash, read_plan
from cloister.plan.site import Site, read_site
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node

_TEES: dict[str, Tee] = {"simulated-sgx": "sgx", "simulated-tdx": "tdx"}
# An X.509 root is about 1 kB.
_MAX_ROOT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node finds its files.

    Attributes:
        plan: The plan.
        plan_directory: Where the plan and the task lie.
        site: The node's site.
        site_directory: What the site's paths are relative to.
    """

    plan: Plan
    plan_directory: Path
    site: Site
    site_directory: Path

    def at_site(self, path: str) -> Path:
        """Returns a path of the site file, resolved."""
        return (self.site_directory / path).resolve()

    @property
    def task_path(self) -> Path:
        """The plan's task file."""
        return self.plan_directory / self.plan.task.file

    @property
    def run_directory(self) -> Path:
        """Where this run's logs and artefacts go."""
        header = self.plan.plan
        # Neither may hold a dot, so no two runs share a directory.
        return self.at_site(self.site.paths.runs) / f"{header.name}.{header.run}"

    @property
    def model_path(self) -> Path:
        """Where the sealed model goes."""
        return self.run_directory / "model.safetensors.age"


def default_site_path(plan_path: Path, party: str) -> Path:
    """Returns where `cloister init` puts a party's site file."""
    return plan_path.parent / "parties" / party / "site.toml"


def read_place(
    plan_path: Path, *, role: Role, party: str | None, site_path: Path | None
) -> Place:
    """Reads the plan and the site of one node.

    Args:
        plan_path: The plan file.
        role: The node's role.
        party: Its party; None for the server, which the plan names alone.
        site_path: Its site file; None for where `init` puts it.

    Raises:
        ConfigError: If a file does not fit, or the party has another role.
    """
    plan = read_plan(plan_path)
    found = plan.find_party(party) if party else plan.server
    if found.role != role:
        raise ConfigError(
            f"party {found.name!r} is not a {role}",
            code="role-differs",
            expected=", ".join(p.name for p in plan.party if p.role == role),
            got=f"{found.name}, a {found.role}",
        )
    path = site_path or default_site_path(plan_path, found.name)
    site = read_site(path)
    if site.party != found.name:
        raise ConfigError(
            f"the site file {path} is another party's",
            code="site-foreign",
            expected=found.name,
            got=site.party,
        )
    return Place(
        plan=plan,
        plan_directory=plan_path.resolve().parent,
        site=site,
        site_directory=path.resolve().parent,
    )


async def build_node(
    place: Place, role: Role, *, log: FilteringBoundLogger
) -> tuple[Node, Task]:
    """Returns a node of `role`, measured and warranted, and its task.

    Raises:
        CloisterError: If any part is missing or does not fit the plan.
    """
    plan, site = place.plan, place.site
    source = read_task_source(place.task_path)
    # In threads, so that an interruption is heard meanwhile.
    platform = await asyncio.to_thread(_load_platform, place, role, source)
    log.info(
        "node-measured",
        role=role,
        tee=platform.tee,
        simulated=platform.simulated,
        measurements=_quoted(platform),
    )
    root = _read_root(place)
    identity = new_identity()
    digest = plan_hash(plan)
    collateral = _collateral_source(place, root)
    _warn_if_refusable(platform, root, collateral, plan.policy_for(role), log)
    task = await asyncio.to_thread(
        load_task,
        source,
        filename=plan.task.file,
        class_name=plan.task.class_,
        options=plan.task.options,
        simulated=plan.simulated,
    )
    custodian: WarrantSource = InsecureLocalCustodian(
        plan,
        key_path=place.at_site(site.custodian.insecure_local_key),
        clock=utc_now,
        log=log,
    )
    warrant = await custodian.warrant(
        run_id=plan.run_id,
        plan_hash=digest,
        role=role,
        party=site.party,
        tls_key=identity.tls_spki,
    )
    node = Node(
        plan=plan,
        plan_hash=digest,
        role=role,
        party=site.party,
        identity=identity,
        platform=platform,
        warrant=warrant,
        root=root,
        collateral=collateral,
        clock=utc_now,
    )
    return node, task


def utc_now() -> datetime:
    """Returns the host's time; nothing but a host vouches for it."""
    return datetime.now(UTC)


def _load_platform(place: Place, role: Role, source: bytes) -> SimulatedPlatform:
    installation = measure_installation(
        interpreter=running_interpreter(), search_path=tuple(sys.path)
    )
    return load_simulated_platform(
        place.at_site(place.site.platform.directory),
        tee=_TEES[place.site.platform.kind],
        measurement=node_measurement(installation, task_source=source, role=role),
    )


def _read_root(place: Place) -> TrustRoot:
    path = place.at_site(place.site.platform.trust_root)
    try:
        with path.open("rb") as file:
            der = file.read(_MAX_ROOT_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot read the trust root {path}",
            code="root-unreadable",
            expected="the development root's certificate (DER)",
            got=error.strerror or "an error",
            remedy="It is [platform] trust_root in site.toml.",
        ) from error
    root = simulated_trust_root(der)
    wanted = place.plan.policy.server.root
    if root.name != wanted:
        raise ConfigError(
            f"the trust root {path} is not the plan's",
            code="root-differs",
            expected=wanted,
            got=root.name,
        )
    return root


def _collateral_source(place: Place, root: TrustRoot) -> CollateralSource:
    section = place.site.collateral
    if section.directory is not None:
        return CollateralFiles(place.at_site(section.directory))
    if section.pccs is None or section.cache is None:
        raise RuntimeError("the site file was read without its checks")
    return PcsClient(
        PcsSettings(
            service=INTEL_PCS
            if section.pccs == "intel"
            else CollateralService(address=section.pccs),
            ca_file=place.at_site(section.ca_file) if section.ca_file else None,
            release=section.release or "standard",
            minimum_evaluation_number=section.minimum_evaluation_number or 0,
        ),
        root=root,
        cache_directory=place.at_site(section.cache),
        clock=utc_now,
    )


def _warn_if_refusable(
    platform: SimulatedPlatform,
    root: TrustRoot,
    collateral: CollateralSource,
    policy: Policy,
    log: FilteringBoundLogger,
) -> None:
    """Says early what the peers will say; the peers decide, not this."""
    try:
        evidence = parse_evidence(platform.quote(bytes(64)))
        at = utc_now()
        claims = verify_evidence(
            evidence,
            collateral=collateral_for_evidence(
                evidence, source=collateral, root=root, at=at
            ),
            root=root,
            at=at,
        )
        appraise(claims, policy)
    except VerificationError as error:
        log.warning("own-evidence-unwanted", code=error.code, reason=str(error))


def _quoted(platform: SimulatedPlatform) -> dict[str, str]:
    measured = platform.measurement
    if platform.tee == "sgx":
        return {"mr_enclave": measured.mr_enclave.hex()}
    return {
        name: getattr(measured, name).hex()
        for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")
    }
