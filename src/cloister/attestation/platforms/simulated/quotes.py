"""Quote bytes, put together as Intel's quoting enclaves do.

Follows `sgx_quote3_t` for SGX and `sgx_quote4_t` for TDX; the reverse of `evidence`.
Byte strings in, byte strings out: whoever has the keys may build any quote with these.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.attestation.evidence import (
    CERTIFICATION_PCK_CHAIN,
    CERTIFICATION_QE_REPORT,
    ECDSA_P256,
    INTEL_QE_VENDOR_ID,
    TEE_TYPE_SGX,
    TEE_TYPE_TDX,
)
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.reports import (
    REPORT_DATA_BYTES,
    SGX_LAYOUT,
    TD_LAYOUT,
    Tee,
)

SGX_QUOTE_VERSION = 3
TDX_QUOTE_VERSION = 4
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


def quote_header(*, tee: Tee, qe_id: bytes) -> bytes:
    """Returns the 48 bytes every quote begins with.

    Args:
        tee: Kind of environment; decides the version.
        qe_id: 16 bytes naming the quoting enclave on its platform.
    """
    sgx = tee == "sgx"
    version = SGX_QUOTE_VERSION if sgx else TDX_QUOTE_VERSION
    tee_type = TEE_TYPE_SGX if sgx else TEE_TYPE_TDX
    enclave_svn = profile.QUOTING_ENCLAVES[tee].isv_svn
    # Version 4 has four reserved bytes where version 3 has two SVNs.
    svns = _integer(enclave_svn, 2) + _integer(profile.PCE_SVN, 2) if sgx else bytes(4)
    return (
        _integer(version, 2)
        + _integer(ECDSA_P256, 2)
        + _integer(tee_type, 4)
        + svns
        + INTEL_QE_VENDOR_ID
        + qe_id.ljust(_USER_DATA_BYTES, b"\0")
    )


def report_body(*, tee: Tee, measurement: Measurement, report_data: bytes) -> bytes:
    """Returns the body that says what runs: an SGX report or a TD report."""
    if tee == "sgx":
        return SGX_LAYOUT.pack(
            profile.CPU_SVN,
            0,
            bytes(16),
            profile.ENCLAVE_FLAGS,
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
    return TD_LAYOUT.pack(
        profile.TEE_TCB_SVN,
        profile.MRSEAM,
        profile.MRSIGNERSEAM,
        profile.SEAM_ATTRIBUTES,
        profile.TD_FLAGS,
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


def qe_report_body(*, tee: Tee, attestation_key: bytes) -> bytes:
    """Returns the quoting enclave's report, which binds the attestation key."""
    enclave = profile.QUOTING_ENCLAVES[tee]
    binding = hashlib.sha256(attestation_key + QE_AUTH).digest()
    return SGX_LAYOUT.pack(
        profile.CPU_SVN,
        0,
        bytes(16),
        profile.QE_FLAGS,
        profile.QE_XFRM,
        enclave.mr_enclave,
        profile.QE_SIGNER,
        bytes(64),
        enclave.isv_prod_id,
        enclave.isv_svn,
        0,
        bytes(16),
        binding.ljust(REPORT_DATA_BYTES, b"\0"),
    )


def certification_data(
    *, tee: Tee, qe_report: bytes, qe_signature: bytes, pck_chain_pem: bytes
) -> bytes:
    """Returns what vouches for the attestation key; TDX quotes wrap it in type 6."""
    inner = (
        qe_report
        + qe_signature
        + _integer(len(QE_AUTH), 2)
        + QE_AUTH
        + _typed(CERTIFICATION_PCK_CHAIN, pck_chain_pem)
    )
    return inner if tee == "sgx" else _typed(CERTIFICATION_QE_REPORT, inner)


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
