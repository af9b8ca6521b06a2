"""A simulated machine that quotes what a node measured. It vouches for nothing real.

Loading reads one platform's own keys. The PCK signs the quoting enclave's report once,
as on real machines, and is not kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.certificates import parse_certificate
from cloister.attestation.pck_extension import PckExtension, parse_pck_extension
from cloister.attestation.pem import split_pem_chain
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.sealing import expanded, no_sealing_key
from cloister.attestation.platforms.simulated.keyfiles import (
    damaged,
    read_file,
    read_key,
)
from cloister.attestation.platforms.simulated.quotes import (
    USUAL_FORMS,
    certification_data,
    qe_report_body,
    quote_header,
    raw_public_key,
    raw_signature,
    report_body,
    signed_quote,
)
from cloister.attestation.platforms.simulated.root import (
    ATTESTATION_KEY_FILE,
    PCK_CHAIN_FILE,
    PCK_KEY_FILE,
    PLATFORM_FILE,
    PLATFORM_FORMAT,
)
from cloister.attestation.reports import REPORT_DATA_BYTES, Tee
from cloister.errors import VerificationError

_QE_ID_BYTES = 16
_P256_BYTES = 32
_SEALING_LABEL = b"cloister/simulated-sealing-key/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPlatform:
    """Issues quotes of the real format under a development root.

    Nothing in it changes after loading, so any thread may quote.

    Attributes:
        name: The platform's name.
        tee: Kind of environment it simulates.
        measurement: What it says runs.
    """

    name: str
    tee: Tee
    measurement: Measurement
    _attestation_key: ec.EllipticCurvePrivateKey = field(repr=False)
    _header: bytes = field(repr=False)
    _certification: bytes = field(repr=False)

    @property
    def simulated(self) -> bool:
        """Always true: this is software."""
        return True

    def quote(self, report_data: bytes) -> bytes:
        """Returns a fresh quote, SGX version 3 or TDX version 4.

        Args:
            report_data: Exactly 64 bytes.

        Raises:
            ValueError: If it is not 64 bytes; a bug of the caller.
        """
        if len(report_data) != REPORT_DATA_BYTES:
            raise ValueError(f"report_data must be {REPORT_DATA_BYTES} bytes")
        body = report_body(
            form=USUAL_FORMS[self.tee],
            measurement=self.measurement,
            report_data=report_data,
        )
        return signed_quote(
            self._header + body,
            key=self._attestation_key,
            certification=self._certification,
        )

    def sealing_key(self) -> bytes:
        """Returns a key of this measurement on this platform; simulated SGX alone.

        It protects nothing: the key that it comes from is a file on the host.

        Raises:
            PlatformError: If TDX is simulated; code `sealing-unavailable`.
        """
        if self.tee != "sgx":
            raise no_sealing_key("simulated TDX", got="TDX, which has none")
        numbers = self._attestation_key.private_numbers()
        return expanded(
            numbers.private_value.to_bytes(_P256_BYTES),
            label=_SEALING_LABEL + self.measurement.mr_enclave,
        )


class _Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    name: str
    ppid: str
    platform_instance_id: str


def load_simulated_platform(
    directory: Path, *, tee: Tee, measurement: Measurement
) -> SimulatedPlatform:
    """Returns the platform that `SimulatedRoot.issue_platform` wrote to `directory`.

    Args:
        directory: The platform's own.
        tee: Kind of environment to simulate.
        measurement: What the node that loads it runs.

    Raises:
        ConfigError: If a file is missing, or others may read a key.
        StorageError: If a file is damaged, or the files do not belong together.
    """
    description = _read_description(directory / PLATFORM_FILE)
    chain_pem = read_file(directory / PCK_CHAIN_FILE)
    pck_key = read_key(directory / PCK_KEY_FILE)
    extension = _checked_chain(directory / PCK_CHAIN_FILE, chain_pem, pck_key)
    if (description.ppid, description.platform_instance_id) != (
        extension.ppid.hex(),
        (extension.platform_instance_id or b"").hex(),
    ):
        raise damaged(directory / PLATFORM_FILE, "names another platform")
    attestation_key = read_key(directory / ATTESTATION_KEY_FILE)
    qe_report = qe_report_body(tee=tee, attestation_key=raw_public_key(attestation_key))
    return SimulatedPlatform(
        name=description.name,
        tee=tee,
        measurement=measurement,
        _attestation_key=attestation_key,
        _header=quote_header(
            form=USUAL_FORMS[tee],
            qe_id=hashlib.sha256(extension.ppid).digest()[:_QE_ID_BYTES],
        ),
        _certification=certification_data(
            form=USUAL_FORMS[tee],
            qe_report=qe_report,
            qe_signature=raw_signature(pck_key, qe_report),
            pck_chain_pem=chain_pem,
        ),
    )


def _read_description(path: Path) -> _Description:
    try:
        description = msgspec.json.decode(read_file(path), type=_Description)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise damaged(path, str(error)) from error
    if description.format != PLATFORM_FORMAT:
        raise damaged(path, f"format {description.format} is unknown")
    return description


def _checked_chain(
    path: Path, chain_pem: bytes, pck_key: ec.EllipticCurvePrivateKey
) -> PckExtension:
    """Finds a damaged platform here, where it can be helped, not at the peer's."""
    try:
        leaf_der, _, _ = split_pem_chain(chain_pem, step=2)
        leaf = parse_certificate(leaf_der, step=2)
        extension = parse_pck_extension(leaf.body.sgx_extension or b"")
    except VerificationError as error:
        raise damaged(path, error.what) from error
    if leaf.public_key != pck_key.public_key():
        raise damaged(path, "its key is another one's")
    return extension
