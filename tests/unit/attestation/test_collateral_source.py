from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest

from cloister.attestation.collateral_source import (
    CollateralFiles,
    CollateralSource,
    collateral_file_name,
    collateral_for_evidence,
)
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.collateral import (
    COLLATERAL_FILES,
    simulated_collateral,
)
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.attestation.verify import verify_evidence
from cloister.errors import CloisterError, ConfigError, StorageError, VerificationError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
FMSPC = profile.FMSPC.hex().upper()


@pytest.fixture
def directory(tmp_path: Path, root: SimulatedRoot, at: datetime) -> Path:
    for tee in TEES:
        said = simulated_collateral(root, tee=tee, at=at)
        (tmp_path / COLLATERAL_FILES[tee]).write_text(json.dumps(said))
    return tmp_path


def refused(directory: Path, fmspc: str = FMSPC) -> CloisterError:
    with pytest.raises(CloisterError) as refusal:
        CollateralFiles(directory).collateral_for(tee="sgx", fmspc=fmspc, ca="platform")
    return refusal.value


@pytest.mark.parametrize("tee", TEES)
def test_the_file_for_the_evidences_platform_verifies_it(
    directory: Path,
    quotes: Mapping[Tee, bytes],
    root: SimulatedRoot,
    at: datetime,
    tee: Tee,
) -> None:
    source: CollateralSource = CollateralFiles(directory)
    evidence = parse_evidence(quotes[tee])
    collateral = collateral_for_evidence(
        evidence, source=source, root=root.trust_root, at=at
    )
    claims = verify_evidence(
        evidence, collateral=collateral, root=root.trust_root, at=at
    )
    assert claims.fmspc == FMSPC


def test_files_have_the_names_that_a_deployment_gives_them() -> None:
    assert {tee: collateral_file_name(tee) for tee in TEES} == COLLATERAL_FILES


def test_a_file_that_is_renewed_is_read_anew(
    directory: Path, root: SimulatedRoot, at: datetime
) -> None:
    source = CollateralFiles(directory)
    before = source.collateral_for(tee="sgx", fmspc=FMSPC.lower(), ca="platform")
    said = simulated_collateral(root, tee="sgx", at=at)
    (directory / COLLATERAL_FILES["sgx"]).write_text(json.dumps(said))
    after = source.collateral_for(tee="sgx", fmspc=FMSPC, ca="platform")
    assert before.tcb_info_signature != after.tcb_info_signature


def test_another_platform_is_refused_by_name(directory: Path) -> None:
    error = refused(directory, "00906ED50000")
    assert isinstance(error, VerificationError)
    assert error.code == "collateral-foreign"
    assert (error.expected, error.got) == ("00906ED50000", FMSPC)
    with pytest.raises(VerificationError) as refusal:
        CollateralFiles(directory).collateral_for(
            tee="sgx", fmspc=FMSPC, ca="processor"
        )
    assert refusal.value.expected == "PCK Processor CA"


def test_a_file_in_the_place_of_another_environments_is_refused(
    directory: Path,
) -> None:
    (directory / COLLATERAL_FILES["tdx"]).replace(directory / COLLATERAL_FILES["sgx"])
    assert refused(directory).code == "collateral-foreign"


def test_a_missing_file_is_the_users_to_correct(tmp_path: Path) -> None:
    error = refused(tmp_path)
    assert isinstance(error, ConfigError)
    assert error.code == "collateral-missing"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b"[" * 100_000, bytes(9_000_000)]
)
def test_a_damaged_file_is_refused(directory: Path, content: bytes) -> None:
    (directory / COLLATERAL_FILES["sgx"]).write_bytes(content)
    error = refused(directory)
    assert isinstance(error, StorageError)
    assert error.code == "collateral-damaged"


def test_a_directory_in_a_files_place_is_refused(directory: Path) -> None:
    (directory / COLLATERAL_FILES["sgx"]).unlink()
    (directory / COLLATERAL_FILES["sgx"]).mkdir()
    assert refused(directory).code == "collateral-unreadable"
