"""Machines that quote other than they should, each in one way."""

from __future__ import annotations

from dataclasses import dataclass, field

from typing_extensions import override

from cloister.attestation.evidence import HEADER_BYTES
from cloister.attestation.platforms import Platform
from cloister.attestation.platforms.simulated.platform import SimulatedPlatform
from cloister.attestation.platforms.simulated.quotes import (
    USUAL_FORMS,
    report_body,
    signed_quote,
)
from cloister.attestation.reports import Tee


@dataclass(slots=True)
class CountingPlatform:
    """Quotes like another one and counts the quotes it made."""

    inner: Platform
    quotes: int = 0

    @property
    def simulated(self) -> bool:
        return self.inner.simulated

    @property
    def tee(self) -> Tee:
        return self.inner.tee

    @property
    def name(self) -> str:
        return self.inner.name

    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        return self.inner.quote(report_data)


@dataclass(slots=True)
class ChangingPlatform(CountingPlatform):
    """Quotes one measurement first and another ever after."""

    later: Platform = field(kw_only=True)

    @override
    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        platform = self.inner if self.quotes == 1 else self.later
        return platform.quote(report_data)


@dataclass(slots=True)
class FixedPlatform(CountingPlatform):
    """Gives one quote to whoever asks, whatever they ask for."""

    kept: bytes = field(kw_only=True)

    @override
    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        return self.kept


@dataclass(slots=True)
class DebugPlatform(CountingPlatform):
    """A genuine enclave or trust domain that its host can look into."""

    inner: SimulatedPlatform

    @override
    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        platform = self.inner
        body = bytearray(
            report_body(
                form=USUAL_FORMS[platform.tee],
                measurement=platform.measurement,
                report_data=report_data,
            )
        )
        # ATTRIBUTES: DEBUG is bit 1 of SGX's flags, bit 0 of TDX's.
        at, bit = (48, 2) if platform.tee == "sgx" else (120, 1)
        body[at] |= bit
        header = platform._header
        assert len(header) == HEADER_BYTES
        return signed_quote(
            header + bytes(body),
            key=platform._attestation_key,
            certification=platform._certification,
        )
