from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.unit.attestation.platforms.devices import TsmReports
from typing_extensions import override

from cloister.attestation.evidence import MAX_QUOTE_BYTES, parse_evidence
from cloister.attestation.platforms import Platform, SealingPlatform
from cloister.attestation.platforms.simulated.platform import SimulatedPlatform
from cloister.attestation.platforms.tdx import (
    MAX_ATTEMPTS,
    ConfigfsEntries,
    TdxPlatform,
    open_tdx_platform,
)
from cloister.attestation.reports import Tee
from cloister.errors import PlatformError

REPORT_DATA = bytes(range(64))

Quote = Callable[[bytes], bytes]


@pytest.fixture
def tdx_quote(platforms: Mapping[Tee, SimulatedPlatform]) -> Quote:
    return platforms["tdx"].quote


@pytest.fixture
def kernel(tmp_path: Path, tdx_quote: Quote) -> TsmReports:
    return TsmReports(tmp_path / "report", tdx_quote)


def opened(kernel: TsmReports) -> TdxPlatform:
    return open_tdx_platform(kernel.path, entries=kernel)


def refused_quote(kernel: TsmReports) -> PlatformError:
    """The refusal; no entry may be left behind by it."""
    platform = opened(kernel)
    with pytest.raises(PlatformError) as refusal:
        platform.quote(REPORT_DATA)
    assert list(kernel.path.iterdir()) == []
    return refusal.value


def test_it_is_tdx_hardware(kernel: TsmReports) -> None:
    platform: Platform = opened(kernel)
    assert (platform.tee, platform.simulated) == ("tdx", False)
    assert platform.name == "TDX guest"


def test_a_trust_domain_has_no_sealing_key(kernel: TsmReports) -> None:
    platform: SealingPlatform = opened(kernel)
    with pytest.raises(PlatformError) as refusal:
        platform.sealing_key()
    assert refusal.value.code == "sealing-unavailable"
    assert "state_share" in refusal.value.remedy


def test_the_quote_is_over_exactly_the_report_data_and_its_entry_is_removed(
    kernel: TsmReports,
) -> None:
    platform = opened(kernel)
    for report_data in (REPORT_DATA, bytes(64), b"\xff" * 64):
        quote = platform.quote(report_data)
        assert parse_evidence(quote).report.report_data == report_data
    assert kernel.made == 4
    assert list(kernel.path.iterdir()) == []


def test_threads_never_get_the_quote_of_another(kernel: TsmReports) -> None:
    platform = opened(kernel)
    wanted = [bytes([number]) * 64 for number in range(32)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        quotes = list(pool.map(platform.quote, wanted))
    assert [parse_evidence(q).report.report_data for q in quotes] == wanted


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_length_is_a_bug_and_reaches_no_device(
    kernel: TsmReports, size: int
) -> None:
    platform = opened(kernel)
    with pytest.raises(ValueError, match="64"):
        platform.quote(bytes(size))
    assert kernel.made == 1


def test_a_rival_costs_an_attempt_and_no_more(tmp_path: Path, tdx_quote: Quote) -> None:
    # The first entry is for looking at the provider.
    kernel = TsmReports(tmp_path / "report", tdx_quote, rivals=(0, 1, 0))
    quote = opened(kernel).quote(REPORT_DATA)
    assert parse_evidence(quote).report.report_data == REPORT_DATA
    assert kernel.made == 3


def test_a_rival_who_goes_on_is_not_waited_for(
    tmp_path: Path, tdx_quote: Quote
) -> None:
    kernel = TsmReports(tmp_path / "report", tdx_quote, rivals=(0, *[1] * 9))
    assert refused_quote(kernel).code == "platform-race"
    assert kernel.made == 1 + MAX_ATTEMPTS


@pytest.mark.parametrize("provider", ["sev_guest", "", "tdx_guest2", "arm_cca_guest"])
def test_another_machines_reports_are_refused(
    tmp_path: Path, tdx_quote: Quote, provider: str
) -> None:
    kernel = TsmReports(tmp_path / "report", tdx_quote, provider=provider)
    with pytest.raises(PlatformError) as refusal:
        opened(kernel)
    assert refusal.value.code == "platform-provider"
    assert list(kernel.path.iterdir()) == []


def test_a_quote_over_other_report_data_is_refused(
    tmp_path: Path, tdx_quote: Quote
) -> None:
    kernel = TsmReports(tmp_path / "report", lambda _: tdx_quote(bytes(64)))
    assert refused_quote(kernel).code == "platform-quote-foreign"


def test_a_quote_of_an_enclave_is_refused(
    tmp_path: Path, platforms: Mapping[Tee, SimulatedPlatform]
) -> None:
    kernel = TsmReports(tmp_path / "report", platforms["sgx"].quote)
    assert refused_quote(kernel).code == "platform-quote-foreign"


@pytest.mark.parametrize("kept", [0, 1, 635, 4096])
def test_a_truncated_quote_is_refused(
    tmp_path: Path, tdx_quote: Quote, kept: int
) -> None:
    kernel = TsmReports(tmp_path / "report", lambda data: tdx_quote(data)[:kept])
    assert refused_quote(kernel).code == "platform-quote-malformed"


def test_a_padded_quote_is_accepted_whole(tmp_path: Path, tdx_quote: Quote) -> None:
    kernel = TsmReports(
        tmp_path / "report", lambda data: tdx_quote(data).ljust(8_000, b"\0")
    )
    assert len(opened(kernel).quote(REPORT_DATA)) == 8_000


def test_a_device_that_does_not_end_is_refused(tmp_path: Path) -> None:
    kernel = TsmReports(tmp_path / "report", lambda _: bytes(MAX_QUOTE_BYTES + 1))
    assert refused_quote(kernel).code == "platform-device"


class BrokenReports(TsmReports):
    """A kernel whose quoting fails: reading its own memory at 0 is an error (EIO)."""

    @override
    def make(self, entry: Path) -> None:
        super().make(entry)
        self._files[entry].close()
        (entry / "outblob").unlink()
        (entry / "outblob").symlink_to("/proc/self/mem")

    @override
    def remove(self, entry: Path) -> None:
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()


def test_a_quoting_service_that_fails_is_named(
    tmp_path: Path, tdx_quote: Quote
) -> None:
    error = refused_quote(BrokenReports(tmp_path / "report", tdx_quote))
    assert error.code == "platform-device"
    assert error.got == os.strerror(errno.EIO)
    assert "qgsd" in error.remedy


class OddReports(TsmReports):
    """A kernel with a generation that is no number."""

    @override
    def make(self, entry: Path) -> None:
        super().make(entry)
        (entry / "generation").write_text("many\n")


def test_a_generation_that_is_no_number_is_refused(
    tmp_path: Path, tdx_quote: Quote
) -> None:
    error = refused_quote(OddReports(tmp_path / "report", tdx_quote))
    assert (error.code, error.got) == ("platform-device", "'many'")


class ClingingReports(TsmReports):
    """A kernel that does not remove entries."""

    @override
    def remove(self, entry: Path) -> None:
        super().remove(entry)
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def test_an_entry_that_stays_spoils_no_quote_and_is_logged(
    tmp_path: Path, tdx_quote: Quote, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = ClingingReports(tmp_path / "report", tdx_quote)
    with caplog.at_level(logging.WARNING):
        assert opened(kernel).quote(REPORT_DATA)
    assert "cannot be removed" in caplog.text


def test_a_kernel_without_reports_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as refusal:
        open_tdx_platform(tmp_path / "missing")
    assert refusal.value.code == "platform-device"
    assert "Linux 6.7" in refusal.value.remedy


def test_the_kernels_own_entries_are_plain_directories(tmp_path: Path) -> None:
    entries = ConfigfsEntries()
    entries.make(tmp_path / "entry")
    assert (tmp_path / "entry").is_dir()
    entries.remove(tmp_path / "entry")
    assert list(tmp_path.iterdir()) == []
