"""Quote bytes, put together as Intel's quoting enclaves do.

Follows `sgx_quote3_t`, `sgx_quote4_t` and `sgx_quote5_t`; the reverse of `evidence`.
Byte strings in, byte strings out: whoever has the keys may build any quote with these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attestation.evidence import (
    BODY_SGX,
    BODY_TD_10,
    BODY_TD_15,
    CERTIFICATION_PCK_CHAIN,
    CERTIFICATION_QE_REPORT,
    ECDSA_P256,
    INTEL_QE_VENDOR_ID,
    TEE_TYPE_SGX,
    TEE_TYPE_TDX,
)
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine
from cloister.attestation.reports import (
    REPORT_DATA_BYTES,
    SGX_LAYOUT,
    TD_15_LAYOUT,
    TD_LAYOUT,
    Tee,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteForm:
    """A form that a quote may have.

    Attributes:
        version: 3, 4 or 5.
        tee: Kind of environment.
        body_type: What a descriptor calls the body; written from version 5 on.
    """

    version: int
    tee: Tee
    body_type: int


SGX_V3 = QuoteForm(version=3, tee="sgx", body_type=BODY_SGX)
SGX_V4 = QuoteForm(version=4, tee="sgx", body_type=BODY_SGX)
SGX_V5 = QuoteForm(version=5, tee="sgx", body_type=BODY_SGX)
TD_10_V4 = QuoteForm(version=4, tee="tdx", body_type=BODY_TD_10)
TD_10_V5 = QuoteForm(version=5, tee="tdx", body_type=BODY_TD_10)
TD_15_V5 = QuoteForm(version=5, tee="tdx", body_type=BODY_TD_15)
QUOTE_FORMS = (SGX_V3, SGX_V4, SGX_V5, TD_10_V4, TD_10_V5, TD_15_V5)
# What simulated platforms quote: the forms that all DCAP tools know.
USUAL_FORMS: dict[Tee, QuoteForm] = {"sgx": SGX_V3, "tdx": TD_10_V4}

_DESCRIBED_VERSION = 5
_WRAPPED_VERSION = 4
# What Intel's quoting enclaves use, and some verifiers demand: 00 01 .. 1F.
QE_AUTH = bytes(range(32))

_USER_DATA_BYTES = 20


def raw_signature(key: ec.EllipticCurvePrivateKey, signed: bytes) -> bytes:
    """Returns ECDSA with SHA-256 as r||s, 64 bytes."""
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def raw_public_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Returns the public key as x||y, 64 bytes."""
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return point[1:]


def quote_header(*, form: QuoteForm, qe_id: bytes, machine: Machine = MACHINE) -> bytes:
    """Returns the 48 bytes every quote begins with.

    Args:
        form: Version and kind of environment.
        qe_id: 16 bytes naming the quoting enclave on its platform.
        machine: Where it is made.
    """
    tee_type = TEE_TYPE_SGX if form.tee == "sgx" else TEE_TYPE_TDX
    enclave_svn = machine.quoting_enclave(form.tee).isv_svn
    # Later versions have four reserved bytes where version 3 has two SVNs.
    svns = (
        bytes(4)
        if form.version >= _WRAPPED_VERSION
        else _integer(enclave_svn, 2) + _integer(machine.pce_svn, 2)
    )
    return (
        _integer(form.version, 2)
        + _integer(ECDSA_P256, 2)
        + _integer(tee_type, 4)
        + svns
        + INTEL_QE_VENDOR_ID
        + qe_id.ljust(_USER_DATA_BYTES, b"\0")
    )


def report_body(
    *,
    form: QuoteForm,
    measurement: Measurement,
    report_data: bytes,
    machine: Machine = MACHINE,
) -> bytes:
    """Returns the body that says what runs, with its descriptor where it has one."""
    if form.tee == "sgx":
        body = _sgx_body(measurement, report_data, machine)
    else:
        body = _td_body(measurement, report_data, machine)
    if form.body_type == BODY_TD_15:
        body += TD_15_LAYOUT.pack(machine.tee_tcb_svn2, machine.mrservicetd)
    if form.version < _DESCRIBED_VERSION:
        return body
    return _integer(form.body_type, 2) + _integer(len(body), 4) + body


def _sgx_body(measurement: Measurement, report_data: bytes, machine: Machine) -> bytes:
    return SGX_LAYOUT.pack(
        bytes(machine.component_svns),
        0,
        bytes(16),
        machine.enclave_flags,
        profile.ENCLAVE_XFRM,
        measurement.mr_enclave,
        measurement.mr_signer,
        bytes(64),
        measurement.isv_prod_id,
        measurement.isv_svn,
        0,
        bytes(16),
        report_data,
    )


def _td_body(measurement: Measurement, report_data: bytes, machine: Machine) -> bytes:
    return TD_LAYOUT.pack(
        machine.tee_tcb_svn,
        profile.MRSEAM,
        machine.mrsignerseam,
        machine.seam_attributes,
        machine.td_flags,
        profile.TD_XFAM,
        measurement.mrtd,
        bytes(48),
        bytes(48),
        bytes(48),
        measurement.rtmr0,
        measurement.rtmr1,
        measurement.rtmr2,
        bytes(48),
        report_data,
    )


def qe_report_body(
    *, tee: Tee, attestation_key: bytes, machine: Machine = MACHINE
) -> bytes:
    """Returns the quoting enclave's report, which binds the attestation key."""
    enclave = machine.quoting_enclave(tee)
    binding = hashlib.sha256(attestation_key + QE_AUTH).digest()
    return SGX_LAYOUT.pack(
        bytes(machine.component_svns),
        machine.qe_misc_select,
        bytes(16),
        machine.qe_flags,
        profile.QE_XFRM,
        enclave.mr_enclave,
        machine.qe_signer,
        bytes(64),
        enclave.isv_prod_id,
        enclave.isv_svn,
        0,
        bytes(16),
        binding.ljust(REPORT_DATA_BYTES, b"\0"),
    )


def certification_data(
    *, form: QuoteForm, qe_report: bytes, qe_signature: bytes, pck_chain_pem: bytes
) -> bytes:
    """Returns what vouches for the attestation key; version 4 on wraps it in type 6."""
    inner = (
        qe_report
        + qe_signature
        + _integer(len(QE_AUTH), 2)
        + QE_AUTH
        + _typed(CERTIFICATION_PCK_CHAIN, pck_chain_pem)
    )
    if form.version < _WRAPPED_VERSION:
        return inner
    return _typed(CERTIFICATION_QE_REPORT, inner)


def signed_quote(
    signed: bytes, *, key: ec.EllipticCurvePrivateKey, certification: bytes
) -> bytes:
    """Returns a whole quote: header and body, signed, and what vouches for the key."""
    data = raw_signature(key, signed) + raw_public_key(key) + certification
    return signed + _integer(len(data), 4) + data


def _typed(kind: int, data: bytes) -> bytes:
    return _integer(kind, 2) + _integer(len(data), 4) + data


def _integer(value: int, length: int) -> bytes:
    return value.to_bytes(length, "little")
