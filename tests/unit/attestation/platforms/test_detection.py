from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.unit.attestation.platforms.devices import GramineDirectory, TsmReports

from cloister.attestation.platforms import detection
from cloister.attestation.platforms.detection import detect_platform
from cloister.attestation.platforms.simulated.platform import SimulatedPlatform
from cloister.attestation.reports import Tee
from cloister.errors import PlatformError


def test_an_enclave_is_found(
    tmp_path: Path, platforms: Mapping[Tee, SimulatedPlatform]
) -> None:
    gramine = GramineDirectory(tmp_path / "attestation", platforms["sgx"].quote)
    found = detect_platform(
        gramine_directory=gramine.path, tsm_directory=tmp_path / "missing"
    )
    assert (found.tee, found.simulated) == ("sgx", False)
    gramine.close()


def test_a_trust_domain_is_found(
    tmp_path: Path, platforms: Mapping[Tee, SimulatedPlatform]
) -> None:
    kernel = TsmReports(tmp_path / "report", platforms["tdx"].quote)
    found = detect_platform(
        gramine_directory=tmp_path / "missing",
        tsm_directory=kernel.path,
        tsm_entries=kernel,
    )
    assert (found.tee, found.simulated) == ("tdx", False)


def test_without_hardware_nothing_is_found_and_nothing_simulated(
    tmp_path: Path,
) -> None:
    with pytest.raises(PlatformError) as refusal:
        detect_platform(
            gramine_directory=tmp_path / "missing", tsm_directory=tmp_path / "missing"
        )
    assert refusal.value.code == "platform-missing"
    source = Path(detection.__file__).read_text()
    assert "import" in source
    assert "platforms.simulated" not in source


def test_broken_hardware_is_an_error_and_no_reason_to_look_further(
    tmp_path: Path, platforms: Mapping[Tee, SimulatedPlatform]
) -> None:
    (tmp_path / "attestation").mkdir()
    with pytest.raises(PlatformError) as refusal:
        detect_platform(
            gramine_directory=tmp_path / "attestation",
            tsm_directory=tmp_path / "missing",
        )
    assert refusal.value.code == "platform-device"
    kernel = TsmReports(
        tmp_path / "report", platforms["tdx"].quote, provider="sev_guest"
    )
    with pytest.raises(PlatformError) as refusal:
        detect_platform(
            gramine_directory=tmp_path / "missing",
            tsm_directory=kernel.path,
            tsm_entries=kernel,
        )
    assert refusal.value.code == "platform-provider"


def test_two_kinds_at_once_are_refused(
    tmp_path: Path, platforms: Mapping[Tee, SimulatedPlatform]
) -> None:
    gramine = GramineDirectory(tmp_path / "attestation", platforms["sgx"].quote)
    kernel = TsmReports(tmp_path / "report", platforms["tdx"].quote)
    with pytest.raises(PlatformError) as refusal:
        detect_platform(gramine_directory=gramine.path, tsm_directory=kernel.path)
    assert refusal.value.code == "platform-ambiguous"
    gramine.close()
