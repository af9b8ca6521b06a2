"""Quote bytes to `Evidence`: step 1 of verification, and nothing of the others.

Follows Intel's `sgx_quote3_t`, `sgx_quote4_t` and `sgx_quote5_t`. Accepted are

- version 3: an SGX report;
- version 4: an SGX report or a TD report 1.0;
- version 5: an SGX report, a TD report 1.0 or 1.5, which a descriptor names;

with certification data type 5 (a PEM chain), which from version 4 on lies inside type
6. All else is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloister.attestation.reports import (
    SGX_REPORT_BYTES,
    TD_REPORT_15_BYTES,
    TD_REPORT_BYTES,
    SgxReport,
    TdReport,
    Tee,
    parse_sgx_report,
    parse_td_report,
    parse_td_report_15,
)
from cloister.errors import VerificationError

# Real quotes are below 6 KB and padded to 8,000 bytes at most; a larger one is refused
# before anything is read, so that a peer cannot make us work for its megabytes.
MAX_QUOTE_BYTES = 32_768

HEADER_BYTES = 48
SIGNATURE_BYTES = 64
PUBLIC_KEY_BYTES = 64
ECDSA_P256 = 2
TEE_TYPE_SGX = 0x00
TEE_TYPE_TDX = 0x81
BODY_SGX = 1
BODY_TD_10 = 2
BODY_TD_15 = 3
BODY_DESCRIPTOR_BYTES = 6
INTEL_QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
CERTIFICATION_PCK_CHAIN = 5
CERTIFICATION_QE_REPORT = 6

_CERTIFICATION_NAMES = {
    1: "plain PPID",
    2: "PPID encrypted with RSA-2048",
    3: "PPID encrypted with RSA-3072",
    4: "PCK certificate alone",
    5: "PCK certificate chain",
    6: "QE report",
    7: "platform manifest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A quote taken apart. NOTHING in it is verified.

    Attributes:
        version: Quote format, 3, 4 or 5.
        tee: Kind of environment the quote says it comes from.
        qe_svn: Security version of the quoting enclave, as the header claims it.
        pce_svn: Security version of the certification enclave, likewise.
        qe_vendor_id: 16 bytes naming the quoting enclave's vendor.
        user_data: 20 bytes of the quoting enclave's choice.
        report: The body: what runs.
        signed_bytes: Header and body with its descriptor, which `signature` covers.
        signature: ECDSA P-256 by the attestation key, r||s, 64 bytes.
        attestation_key: Public key, x||y, 64 bytes.
        qe_report: The quoting enclave's own report.
        qe_report_bytes: The same, raw, which `qe_signature` covers.
        qe_signature: ECDSA P-256 by the PCK, r||s, 64 bytes.
        qe_auth: Authentication data bound into the QE report.
        pck_chain_pem: Certificate chain of the PCK, leaf first.
    """

    version: int
    tee: Tee
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes
    report: SgxReport | TdReport
    signed_bytes: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: SgxReport
    qe_report_bytes: bytes
    qe_signature: bytes
    qe_auth: bytes
    pck_chain_pem: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    tee: Tee
    size: int
    parse: Callable[[bytes], SgxReport | TdReport]


_SGX_BODY = _Body(tee="sgx", size=SGX_REPORT_BYTES, parse=parse_sgx_report)
_TD_BODY = _Body(tee="tdx", size=TD_REPORT_BYTES, parse=parse_td_report)
_TD_15_BODY = _Body(tee="tdx", size=TD_REPORT_15_BYTES, parse=parse_td_report_15)

# Body by (version, TEE type), where these say it all.
_BODIES = {
    (3, TEE_TYPE_SGX): _SGX_BODY,
    (4, TEE_TYPE_SGX): _SGX_BODY,
    (4, TEE_TYPE_TDX): _TD_BODY,
}
# Body by (TEE type, body type), where a descriptor says it. Intel's headers have no
# type above 3; others were seen to use 4 for a longer report.
_DESCRIBED_BODIES = {
    (TEE_TYPE_SGX, BODY_SGX): _SGX_BODY,
    (TEE_TYPE_TDX, BODY_TD_10): _TD_BODY,
    (TEE_TYPE_TDX, BODY_TD_15): _TD_15_BODY,
}
_BODY_NAMES = {
    BODY_SGX: "SGX report",
    BODY_TD_10: "TD report 1.0",
    BODY_TD_15: "TD report 1.5",
    4: "TD report 1.5 extended",
}
_DESCRIBED_VERSION = 5
_KNOWN_VERSIONS = (3, 4, 5)


def parse_evidence(unverified_quote: bytes) -> Evidence:
    """Returns the parts of a quote; believes none of them.

    Zeros after the quote are tolerated, for several clouds pad; anything else after
    it, or between its parts, is refused.

    Args:
        unverified_quote: The quote as it came from the peer.

    Raises:
        VerificationError: If the bytes are no quote of an accepted form (step 1).
    """
    if len(unverified_quote) > MAX_QUOTE_BYTES:
        raise _refused(
            "quote is too large",
            code="quote-too-large",
            expected=f"at most {MAX_QUOTE_BYTES} bytes",
            got=f"{len(unverified_quote)} bytes",
        )
    cursor = _Cursor(unverified_quote)
    header = cursor.take(HEADER_BYTES, "the header")
    version = _integer(header[0:2])
    _check_header(header, version)
    descriptor = (
        cursor.take(BODY_DESCRIPTOR_BYTES, "the body descriptor")
        if version == _DESCRIBED_VERSION
        else b""
    )
    body = _body_form(_integer(header[4:8]), version, descriptor)
    body_bytes = cursor.take(body.size, "the report body")
    signature_data = cursor.take(
        cursor.integer(4, "signature length"), "signature data"
    )
    if any(cursor.rest()):
        raise _refused(
            "bytes that are not zero follow the quote",
            code="quote-trailing-bytes",
            expected="the end, or zeros",
        )
    inner = _Cursor(signature_data)
    signature = inner.take(SIGNATURE_BYTES, "the quote signature")
    attestation_key = inner.take(PUBLIC_KEY_BYTES, "the attestation key")
    certification = _certification(inner, version)
    return Evidence(
        version=version,
        tee=body.tee,
        # Later versions have zeros where version 3 keeps these two.
        qe_svn=_integer(header[8:10]),
        pce_svn=_integer(header[10:12]),
        qe_vendor_id=header[12:28],
        user_data=header[28:48],
        report=body.parse(body_bytes),
        signed_bytes=header + descriptor + body_bytes,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=parse_sgx_report(certification.qe_report_bytes),
        qe_report_bytes=certification.qe_report_bytes,
        qe_signature=certification.qe_signature,
        qe_auth=certification.qe_auth,
        pck_chain_pem=certification.pck_chain_pem,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certification:
    qe_report_bytes: bytes
    qe_signature: bytes
    qe_auth: bytes
    pck_chain_pem: bytes


def _check_header(header: bytes, version: int) -> None:
    if version not in _KNOWN_VERSIONS:
        raise _refused(
            "quote version is not accepted",
            code="quote-version-unsupported",
            expected=" or ".join(map(str, _KNOWN_VERSIONS)),
            got=str(version),
        )
    key_type = _integer(header[2:4])
    if key_type != ECDSA_P256:
        raise _refused(
            "attestation key type is not accepted",
            code="quote-key-type-unsupported",
            expected=f"{ECDSA_P256} (ECDSA P-256)",
            got=str(key_type),
        )
    if header[12:28] != INTEL_QE_VENDOR_ID:
        raise _refused(
            "quoting enclave is of an unknown vendor",
            code="quote-vendor-unknown",
            expected=INTEL_QE_VENDOR_ID.hex(),
            got=header[12:28].hex(),
        )


def _body_form(tee_type: int, version: int, descriptor: bytes) -> _Body:
    """Finds the form of the body by the header and, in version 5, its descriptor."""
    if not descriptor:
        body = _BODIES.get((version, tee_type))
        got = f"TEE type {tee_type:#x}"
    else:
        body_type = _integer(descriptor[0:2])
        body = _DESCRIBED_BODIES.get((tee_type, body_type))
        name = _BODY_NAMES.get(body_type, "unknown")
        got = f"TEE type {tee_type:#x} with body type {body_type} ({name})"
    if body is None:
        raise _refused(
            f"body is not accepted in a quote of version {version}",
            code="quote-body-unsupported",
            expected="an SGX report (TEE type 0x0) or, from version 4 on, a TD report "
            "1.0 or 1.5 (TEE type 0x81)",
            got=got,
        )
    if descriptor and _integer(descriptor[2:6]) != body.size:
        raise _refused(
            "body has another size than its type",
            code="quote-body-size",
            expected=f"{body.size} bytes",
            got=f"{_integer(descriptor[2:6])} bytes",
        )
    return body


def _certification(cursor: _Cursor, version: int) -> _Certification:
    """Reads what vouches for the attestation key; from version 4 on inside type 6."""
    if version >= 4:
        wrapped = _typed_data(cursor, CERTIFICATION_QE_REPORT)
        cursor = _Cursor(wrapped)
    qe_report_bytes = cursor.take(SGX_REPORT_BYTES, "the QE report")
    qe_signature = cursor.take(SIGNATURE_BYTES, "the QE report signature")
    qe_auth = cursor.take(cursor.integer(2, "QE auth length"), "QE auth data")
    return _Certification(
        qe_report_bytes=qe_report_bytes,
        qe_signature=qe_signature,
        qe_auth=qe_auth,
        pck_chain_pem=_typed_data(cursor, CERTIFICATION_PCK_CHAIN),
    )


def _typed_data(cursor: _Cursor, expected_type: int) -> bytes:
    """Reads certification data of one type, which must be the last thing there."""
    got_type = cursor.integer(2, "certification data type")
    if got_type != expected_type:
        raise _refused(
            "certification data type is not accepted",
            code="certification-type-unsupported",
            expected=f"{expected_type} ({_CERTIFICATION_NAMES[expected_type]})",
            got=f"{got_type} ({_CERTIFICATION_NAMES.get(got_type, 'unknown')})",
        )
    length = cursor.integer(4, "certification data length")
    data = cursor.take(length, "certification data")
    if cursor.rest():
        raise _refused(
            "bytes are left over inside the signature data",
            code="quote-inner-slack",
            expected="the end",
            got=f"{len(cursor.rest())} more bytes",
        )
    return data


class _Cursor:
    """Reads from the front and never past the end."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, length: int, what: str) -> bytes:
        end = self._position + length
        if end > len(self._data):
            raise _refused(
                f"quote ends inside {what}",
                code="quote-truncated",
                expected=f"{length} bytes",
                got=f"{len(self._data) - self._position} bytes",
            )
        taken = self._data[self._position : end]
        self._position = end
        return taken

    def integer(self, length: int, what: str) -> int:
        return _integer(self.take(length, what))

    def rest(self) -> bytes:
        return self._data[self._position :]


def _integer(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _refused(
    what: str, *, code: str, expected: str = "", got: str = ""
) -> VerificationError:
    return VerificationError(
        what,
        code=code,
        expected=expected,
        got=got,
        remedy="ask the peer which platform made its quote",
        step=1,
    )
