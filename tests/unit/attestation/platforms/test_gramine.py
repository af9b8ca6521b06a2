from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.attestation.platforms.devices import GramineDirectory

from cloister.attestation.evidence import MAX_QUOTE_BYTES, parse_evidence
from cloister.attestation.platforms import Platform, SealingPlatform
from cloister.attestation.platforms.gramine import open_gramine_platform
from cloister.attestation.platforms.simulated.platform import SimulatedPlatform
from cloister.attestation.reports import Tee
from cloister.errors import PlatformError

REPORT_DATA = bytes(range(64))

Quote = Callable[[bytes], bytes]
MakeDirectory = Callable[..., Path]


@pytest.fixture
def sgx_quote(platforms: Mapping[Tee, SimulatedPlatform]) -> Quote:
    return platforms["sgx"].quote


@pytest.fixture
def make_directory(tmp_path: Path) -> Iterator[MakeDirectory]:
    made: list[GramineDirectory] = []

    def make(quote: Quote, *, attestation_type: str = "dcap") -> Path:
        made.append(
            GramineDirectory(
                tmp_path / "attestation", quote, attestation_type=attestation_type
            )
        )
        return made[-1].path

    yield make
    for directory in made:
        directory.close()


def refused_quote(directory: Path) -> PlatformError:
    platform = open_gramine_platform(directory)
    with pytest.raises(PlatformError) as refusal:
        platform.quote(REPORT_DATA)
    return refusal.value


def test_it_is_sgx_hardware(make_directory: MakeDirectory, sgx_quote: Quote) -> None:
    platform: Platform = open_gramine_platform(make_directory(sgx_quote))
    assert (platform.tee, platform.simulated) == ("sgx", False)
    assert platform.name == "Gramine"


def test_the_quote_is_over_exactly_the_report_data(
    make_directory: MakeDirectory, sgx_quote: Quote
) -> None:
    platform = open_gramine_platform(make_directory(sgx_quote))
    for report_data in (REPORT_DATA, bytes(64), b"\xff" * 64):
        quote = platform.quote(report_data)
        assert parse_evidence(quote).report.report_data == report_data


def test_threads_never_get_the_quote_of_another(
    make_directory: MakeDirectory, sgx_quote: Quote
) -> None:
    directory = make_directory(sgx_quote)
    wanted = [bytes([number]) * 64 for number in range(32)]

    # Two platforms over one directory: the state is the process's, not the object's.
    platforms = [open_gramine_platform(directory) for _ in range(2)]

    def quoted(number: int) -> bytes:
        quote = platforms[number % 2].quote(wanted[number])
        return parse_evidence(quote).report.report_data

    with ThreadPoolExecutor(max_workers=8) as pool:
        assert list(pool.map(quoted, range(32))) == wanted


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_length_is_a_bug_and_reaches_no_device(
    make_directory: MakeDirectory, sgx_quote: Quote, size: int
) -> None:
    directory = make_directory(sgx_quote)
    with pytest.raises(ValueError, match="64"):
        open_gramine_platform(directory).quote(bytes(size))
    assert (directory / "user_report_data").read_bytes() == bytes(64)


@pytest.mark.parametrize(
    "other", [bytes(64), REPORT_DATA[:-1] + b"\0", b"\xff" + REPORT_DATA[1:]]
)
def test_a_quote_over_other_report_data_is_refused(
    make_directory: MakeDirectory, sgx_quote: Quote, other: bytes
) -> None:
    error = refused_quote(make_directory(lambda _: sgx_quote(other)))
    assert error.code == "platform-quote-foreign"
    assert (error.expected, error.got) == (REPORT_DATA.hex(), other.hex())


def test_a_quote_of_a_trust_domain_is_refused(
    make_directory: MakeDirectory, platforms: Mapping[Tee, SimulatedPlatform]
) -> None:
    error = refused_quote(make_directory(platforms["tdx"].quote))
    assert error.code == "platform-quote-foreign"


@pytest.mark.parametrize("kept", [0, 1, 47, 431, 1000])
def test_a_truncated_quote_is_refused(
    make_directory: MakeDirectory, sgx_quote: Quote, kept: int
) -> None:
    error = refused_quote(make_directory(lambda data: sgx_quote(data)[:kept]))
    assert error.code == "platform-quote-malformed"


def test_a_device_that_does_not_end_is_refused(make_directory: MakeDirectory) -> None:
    error = refused_quote(make_directory(lambda _: bytes(MAX_QUOTE_BYTES + 1)))
    assert error.code == "platform-device"


def test_a_device_that_fails_is_refused_with_what_to_look_at(
    make_directory: MakeDirectory, sgx_quote: Quote
) -> None:
    directory = make_directory(sgx_quote)
    platform = open_gramine_platform(directory)
    (directory / "user_report_data").unlink()
    with pytest.raises(PlatformError) as refusal:
        platform.quote(REPORT_DATA)
    assert refusal.value.code == "platform-device"
    assert "aesmd" in refusal.value.remedy


@pytest.mark.parametrize("kind", ["none", "epid", "", "dcap2", "\xff"])
def test_an_enclave_without_dcap_is_refused(
    make_directory: MakeDirectory, sgx_quote: Quote, kind: str
) -> None:
    with pytest.raises(PlatformError) as refusal:
        open_gramine_platform(make_directory(sgx_quote, attestation_type=kind))
    assert refusal.value.code == "platform-attestation-type"
    assert "sgx.remote_attestation" in refusal.value.remedy


def test_gramine_direct_is_no_enclave(tmp_path: Path) -> None:
    (tmp_path / "attestation" / "keys").mkdir(parents=True)
    with pytest.raises(PlatformError) as refusal:
        open_gramine_platform(tmp_path / "attestation")
    assert refusal.value.code == "platform-device"
    assert "gramine-sgx" in refusal.value.remedy


def sealing_key(directory: Path, *, key: bytes | None) -> bytes:
    if key is not None:
        (directory / "keys" / "_sgx_mrenclave").write_bytes(key)
    platform: SealingPlatform = open_gramine_platform(directory)
    return platform.sealing_key()


def test_the_sealing_key_is_expanded_from_the_enclaves_own(
    make_directory: MakeDirectory, sgx_quote: Quote
) -> None:
    directory = make_directory(sgx_quote)
    own = bytes(range(16))
    expected = hmac.digest(
        hmac.digest(bytes(32), own, "sha256"), b"cloister/sealing-key/1\x01", "sha256"
    )
    assert sealing_key(directory, key=own) == expected
    assert sealing_key(directory, key=own) == expected
    assert sealing_key(directory, key=own[::-1]) != expected


@pytest.mark.parametrize("size", [None, 0, 15])
def test_an_enclave_that_shows_no_whole_key_has_no_sealing_key(
    make_directory: MakeDirectory, sgx_quote: Quote, size: int | None
) -> None:
    with pytest.raises(PlatformError) as refusal:
        sealing_key(
            make_directory(sgx_quote), key=None if size is None else b"k" * size
        )
    assert refusal.value.code == "sealing-unavailable"
    assert "keys/_sgx_mrenclave" in refusal.value.got
    assert "kkk" not in str(refusal.value)


def test_a_key_file_that_does_not_end_is_refused(
    make_directory: MakeDirectory, sgx_quote: Quote
) -> None:
    with pytest.raises(PlatformError) as refusal:
        sealing_key(make_directory(sgx_quote), key=bytes(17))
    assert refusal.value.code == "platform-device"
