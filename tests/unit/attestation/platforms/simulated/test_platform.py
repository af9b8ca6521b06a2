from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from cloister.attestation.collateral import Collateral
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms import Platform, SealingPlatform
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.platform import (
    SimulatedPlatform,
    load_simulated_platform,
)
from cloister.attestation.platforms.simulated.root import (
    ATTESTATION_KEY_FILE,
    PCK_CHAIN_FILE,
    PCK_KEY_FILE,
    PLATFORM_FILE,
    SimulatedRoot,
)
from cloister.attestation.reports import Tee
from cloister.attestation.verify import verify_evidence
from cloister.errors import ConfigError, PlatformError, StorageError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
FILES = [ATTESTATION_KEY_FILE, PCK_CHAIN_FILE, PCK_KEY_FILE, PLATFORM_FILE]


@pytest.fixture
def directory(platform_directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(platform_directory, tmp_path / "alice"))


def load(directory: Path, measurement: Measurement) -> SimulatedPlatform:
    return load_simulated_platform(directory, tee="sgx", measurement=measurement)


@pytest.mark.parametrize("tee", TEES)
def test_it_is_a_platform_and_says_that_it_is_simulated(
    platforms: Mapping[Tee, SimulatedPlatform], tee: Tee
) -> None:
    platform: Platform = platforms[tee]
    assert platform.simulated
    assert platform.tee == tee
    assert platform.name == "alice"


@pytest.mark.parametrize("tee", TEES)
def test_quotes_from_many_threads_are_all_genuine(
    platforms: Mapping[Tee, SimulatedPlatform],
    collaterals: Mapping[Tee, Collateral],
    root: SimulatedRoot,
    at: datetime,
    tee: Tee,
) -> None:
    wanted = [bytes([number]) * 64 for number in range(64)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        quotes = list(pool.map(platforms[tee].quote, wanted))
    trust_root = root.trust_root
    got = [
        verify_evidence(
            parse_evidence(quote), collateral=collaterals[tee], root=trust_root, at=at
        ).report_data
        for quote in quotes
    ]
    assert got == wanted


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_length_is_a_bug_and_no_quote(
    platforms: Mapping[Tee, SimulatedPlatform], size: int
) -> None:
    with pytest.raises(ValueError, match="64"):
        platforms["sgx"].quote(bytes(size))


def test_nothing_secret_is_in_a_repr(
    platforms: Mapping[Tee, SimulatedPlatform],
) -> None:
    assert "key" not in repr(platforms["sgx"]).lower()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused_with_what_to_do(
    directory: Path, measurement: Measurement, name: str
) -> None:
    (directory / name).unlink()
    with pytest.raises(ConfigError) as refusal:
        load(directory, measurement)
    assert refusal.value.code == "simulated-missing"
    assert "cloister init" in refusal.value.remedy


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe garbage", b"{}", bytes(70_000)])
def test_a_damaged_file_is_refused(
    directory: Path, measurement: Measurement, name: str, content: bytes
) -> None:
    (directory / name).write_bytes(content)
    with pytest.raises(StorageError) as refusal:
        load(directory, measurement)
    assert refusal.value.code == "simulated-damaged"


def test_a_directory_in_a_files_place_is_refused(
    directory: Path, measurement: Measurement
) -> None:
    (directory / PCK_CHAIN_FILE).unlink()
    (directory / PCK_CHAIN_FILE).mkdir()
    with pytest.raises(StorageError):
        load(directory, measurement)


@pytest.mark.parametrize("name", [PCK_KEY_FILE, PCK_CHAIN_FILE, PLATFORM_FILE])
def test_a_file_of_another_platform_is_refused(
    directory: Path,
    measurement: Measurement,
    root: SimulatedRoot,
    at: datetime,
    name: str,
) -> None:
    other = directory.parent / "bob"
    root.issue_platform(other, name="bob", at=at)
    shutil.copy(other / name, directory / name)
    with pytest.raises(StorageError) as refusal:
        load(directory, measurement)
    assert refusal.value.code == "simulated-damaged"


def test_a_description_of_a_later_format_is_refused(
    directory: Path, measurement: Measurement
) -> None:
    path = directory / PLATFORM_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(StorageError):
        load(directory, measurement)


def test_the_sealing_key_is_of_this_measurement_on_this_platform_alone(
    directory: Path, measurement: Measurement, root: SimulatedRoot, at: datetime
) -> None:
    root.issue_platform(directory.parent / "bob", name="bob", at=at)
    other = replace(measurement, mr_enclave=bytes(32))
    platforms: list[SealingPlatform] = [
        load(directory, measurement),
        load(directory, other),
        load(directory.parent / "bob", measurement),
    ]
    keys = [platform.sealing_key() for platform in platforms]
    assert {len(key) for key in keys} == {32}
    assert len(set(keys)) == len(keys)
    # After a restart it is the same.
    assert load(directory, measurement).sealing_key() == keys[0]


def test_simulated_tdx_has_no_sealing_key_either(
    platforms: Mapping[Tee, SimulatedPlatform],
) -> None:
    with pytest.raises(PlatformError) as refusal:
        platforms["tdx"].sealing_key()
    assert refusal.value.code == "sealing-unavailable"
