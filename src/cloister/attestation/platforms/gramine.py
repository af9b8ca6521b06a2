"""An SGX enclave under Gramine: quotes from ``/dev/attestation``.

Follows Gramine's "Attestation and Secret Provisioning": report data is written to
`user_report_data`, and `quote` then has a quote over it. The two files are one state of
the whole process, so one lock holds them together in it.

The sealing key is what Gramine shows of EGETKEY, bound to MRENCLAVE, to the enclave's
attributes and to the processor's security version. So the enclave's debug twin has
another one, and so has the very same enclave after a microcode update: what was sealed
before is lost then. It was never tried on hardware.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from cloister.attestation.platforms.quoting import (
    checked_quote,
    device_error,
    read_bounded,
    require_report_data,
    write_once,
)
from cloister.attestation.platforms.sealing import expanded, no_sealing_key
from cloister.attestation.reports import Tee
from cloister.errors import PlatformError

GRAMINE_DIRECTORY = Path("/dev/attestation")
ATTESTATION_TYPE_FILE = "attestation_type"
USER_REPORT_DATA_FILE = "user_report_data"
QUOTE_FILE = "quote"
SEALING_KEY_FILE = "keys/_sgx_mrenclave"

_DCAP = "dcap"
_MAX_TYPE_BYTES = 64
_GRAMINE_KEY_BYTES = 16
# Gramine warns of using this key twice, for its encrypted files and for anything else.
# No manifest of ours mounts with it, and nothing ever uses it but through a KDF.
_SEALING_LABEL = b"cloister/sealing-key/1"
_MANIFEST = "set sgx.remote_attestation = 'dcap' in the manifest, and run gramine-sgx"

# The state behind the two files belongs to the process, so the lock does as well.
_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraminePlatform:
    """The enclave that this process runs in; made by `open_gramine_platform`.

    Attributes:
        directory: Gramine's pseudo-directory.
    """

    directory: Path

    @property
    def simulated(self) -> bool:
        """Always false."""
        return False

    @property
    def tee(self) -> Tee:
        """Always "sgx"."""
        return "sgx"

    @property
    def name(self) -> str:
        """Name for people and logs."""
        return "Gramine"

    def quote(self, report_data: bytes) -> bytes:
        """Returns a fresh quote over exactly 64 bytes of report data.

        Raises:
            PlatformError: If the enclave cannot quote, or quotes something else.
            ValueError: If `report_data` is not 64 bytes; a bug of the caller.
        """
        require_report_data(report_data)
        try:
            with _lock:
                write_once(self.directory / USER_REPORT_DATA_FILE, report_data)
                quote = read_bounded(self.directory / QUOTE_FILE)
        except OSError as error:
            raise device_error(
                "the enclave cannot quote",
                self.directory / QUOTE_FILE,
                error,
                remedy="is aesmd running on the host, with its quote provider "
                "configured?",
            ) from error
        return checked_quote(
            quote, tee=self.tee, report_data=report_data, device=self.name
        )

    def sealing_key(self) -> bytes:
        """Returns a key of this enclave on this machine; see `SealingPlatform`.

        Raises:
            PlatformError: If Gramine gives none; code `sealing-unavailable`.
        """
        path = self.directory / SEALING_KEY_FILE
        try:
            key = read_bounded(path, max_bytes=_GRAMINE_KEY_BYTES)
        except OSError as error:
            got = f"{path}: {error.strerror or 'an error'}"
            raise no_sealing_key(self.name, got=got) from error
        if len(key) != _GRAMINE_KEY_BYTES:
            raise no_sealing_key(self.name, got=f"{path} with {len(key)} bytes")
        return expanded(key, label=_SEALING_LABEL)


def open_gramine_platform(directory: Path = GRAMINE_DIRECTORY) -> GraminePlatform:
    """Returns the enclave that this process runs in.

    Args:
        directory: Gramine's pseudo-directory.

    Raises:
        PlatformError: If this is no enclave, or one without DCAP attestation.
    """
    path = directory / ATTESTATION_TYPE_FILE
    try:
        kind = read_bounded(path, max_bytes=_MAX_TYPE_BYTES)
    except OSError as error:
        # gramine-direct has the directory, with keys in it and nothing else.
        raise device_error(
            "this process runs in no SGX enclave under Gramine",
            path,
            error,
            remedy=_MANIFEST,
        ) from error
    if kind.strip() != _DCAP.encode():
        raise PlatformError(
            "the enclave has no DCAP attestation",
            code="platform-attestation-type",
            expected=_DCAP,
            got=repr(kind.decode(errors="replace")),
            remedy=_MANIFEST,
        )
    return GraminePlatform(directory=directory)
