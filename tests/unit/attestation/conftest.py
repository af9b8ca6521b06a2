from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.claims import Claims
from cloister.attestation.collateral import Collateral, parse_collateral
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms.measurement import (
    Installation,
    Measurement,
    node_measurement,
)
from cloister.attestation.platforms.simulated.collateral import simulated_collateral
from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.reports import Tee
from cloister.attestation.verify import verify_evidence

TEES: tuple[Tee, ...] = ("sgx", "tdx")


@pytest.fixture(scope="session")
def at() -> datetime:
    return datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory, at: datetime) -> SimulatedRoot:
    return create_simulated_root(tmp_path_factory.mktemp("root"), at=at)


@pytest.fixture(scope="session")
def measurement() -> Measurement:
    installation = Installation(
        interpreter=bytes(range(32)),
        installed=bytes(range(32, 64)),
        interpreter_files=1,
        installed_files=1,
        total_bytes=2,
    )
    return node_measurement(installation, sources=(b"task",), role="worker")


@pytest.fixture(scope="session")
def platform_directory(
    tmp_path_factory: pytest.TempPathFactory, root: SimulatedRoot, at: datetime
) -> Path:
    directory = tmp_path_factory.mktemp("platforms") / "alice"
    root.issue_platform(directory, name="alice", at=at)
    return directory


@pytest.fixture(scope="session")
def platforms(
    platform_directory: Path, measurement: Measurement
) -> Mapping[Tee, SimulatedPlatform]:
    return {
        tee: load_simulated_platform(
            platform_directory, tee=tee, measurement=measurement
        )
        for tee in TEES
    }


@pytest.fixture(scope="session")
def quotes(platforms: Mapping[Tee, SimulatedPlatform]) -> Mapping[Tee, bytes]:
    return {tee: platforms[tee].quote(bytes(range(64))) for tee in TEES}


@pytest.fixture(scope="session")
def collaterals(root: SimulatedRoot, at: datetime) -> Mapping[Tee, Collateral]:
    return {
        tee: parse_collateral(json.dumps(simulated_collateral(root, tee=tee, at=at)))
        for tee in TEES
    }


@pytest.fixture(scope="session")
def claims(
    quotes: Mapping[Tee, bytes],
    collaterals: Mapping[Tee, Collateral],
    root: SimulatedRoot,
    at: datetime,
) -> Mapping[Tee, Claims]:
    return {
        tee: verify_evidence(
            parse_evidence(quote),
            collateral=collaterals[tee],
            root=root.trust_root,
            at=at,
        )
        for tee, quote in quotes.items()
    }


@pytest.fixture(scope="session")
def judge(root: SimulatedRoot, measurement: Measurement, at: datetime) -> Judge:
    return Judge(root=root, at=at, measurement=measurement)
