"""What a PCK certificate says about its platform: Intel's SGX extension.

Follows Intel's "SGX PCK Certificate and Certificate Revocation List Profile
Specification" section 1.3.5, object identifier 1.2.840.113741.1.13.1. Identifiers
under it that are not named there are passed over: the issuing CA has signed them, and
a field added later must not turn genuine platforms away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from cloister.attestation.der import Element, parse_der
from cloister.errors import VerificationError

SGX_EXTENSION_OID = "1.2.840.113741.1.13.1"
COMPONENT_COUNT = 16
MAX_SVN = 0xFF
MAX_PCE_SVN = 0xFFFF

PPID_BYTES = 16
CPU_SVN_BYTES = 16
PCE_ID_BYTES = 2
FMSPC_BYTES = 6
PLATFORM_INSTANCE_ID_BYTES = 16

_Value = TypeVar("_Value")

SgxType = Literal["standard", "scalable", "scalable-with-integrity"]
SGX_TYPES: tuple[SgxType, ...] = ("standard", "scalable", "scalable-with-integrity")


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtension:
    """The platform a PCK certificate was issued to.

    Attributes:
        ppid: Platform provisioning identifier, 16 bytes.
        cpu_svn: The 16 component SVNs as the processor reports them.
        component_svns: The same 16, each 0..255.
        pce_svn: Security version of the certification enclave, 0..65535.
        pce_id: Identifier of the certification enclave, 2 bytes.
        fmspc: Family, model, stepping, platform and custom SKU, 6 bytes.
        sgx_type: How the platform protects its memory.
        platform_instance_id: 16 bytes; None under the Processor CA.
        dynamic_platform: Whether packages may be added; None where not stated.
        cached_keys: Whether Intel keeps the platform's root keys; None likewise.
        smt: Whether hyper-threads were on at issue; None likewise.
    """

    ppid: bytes
    cpu_svn: bytes
    component_svns: tuple[int, ...]
    pce_svn: int
    pce_id: bytes
    fmspc: bytes
    sgx_type: SgxType
    platform_instance_id: bytes | None
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


def parse_pck_extension(unverified_der: bytes) -> PckExtension:
    """Returns the platform named by an SGX extension's value.

    Args:
        unverified_der: The extension's value, without its OCTET STRING.

    Raises:
        VerificationError: If it is not strict DER, a field is missing, doubled, of a
            wrong length or out of range, or the components contradict the CPUSVN
            (step 2).
    """
    try:
        return _extension(_fields(parse_der(unverified_der), SGX_EXTENSION_OID))
    except VerificationError as error:
        raise VerificationError(
            f"SGX extension of the PCK certificate: {error.what}",
            code="pck-extension",
            expected=error.expected,
            got=error.got,
            step=2,
        ) from error


def _extension(fields: dict[str, Element]) -> PckExtension:
    tcb = _fields(_required(fields, "2"), f"{SGX_EXTENSION_OID}.2")
    component_svns = tuple(
        _svn(_required(tcb, str(number)), maximum=MAX_SVN)
        for number in range(1, COMPONENT_COUNT + 1)
    )
    cpu_svn = _octets(_required(tcb, "18"), CPU_SVN_BYTES, "CPUSVN")
    # Intel's library decides by the components, others by the CPUSVN: if the two could
    # differ, two verifiers could judge one platform differently.
    if cpu_svn != bytes(component_svns):
        raise _wrong(
            "component SVNs contradict the CPUSVN",
            expected=cpu_svn.hex(),
            got=bytes(component_svns).hex(),
        )
    instance = fields.get("6")
    configuration = fields.get("7")
    settings = (
        {}
        if configuration is None
        else _fields(configuration, f"{SGX_EXTENSION_OID}.7")
    )
    return PckExtension(
        ppid=_octets(_required(fields, "1"), PPID_BYTES, "PPID"),
        cpu_svn=cpu_svn,
        component_svns=component_svns,
        pce_svn=_svn(_required(tcb, "17"), maximum=MAX_PCE_SVN),
        pce_id=_octets(_required(fields, "3"), PCE_ID_BYTES, "PCEID"),
        fmspc=_octets(_required(fields, "4"), FMSPC_BYTES, "FMSPC"),
        sgx_type=_sgx_type(_required(fields, "5")),
        platform_instance_id=_optional(
            instance,
            lambda it: _octets(it, PLATFORM_INSTANCE_ID_BYTES, "platform instance ID"),
        ),
        dynamic_platform=_optional(settings.get("1"), Element.boolean),
        cached_keys=_optional(settings.get("2"), Element.boolean),
        smt=_optional(settings.get("3"), Element.boolean),
    )


def _fields(sequence: Element, prefix: str) -> dict[str, Element]:
    """Returns a SEQUENCE of {OID, value} as last arc to value; no OID comes twice."""
    fields: dict[str, Element] = {}
    for pair in sequence.children():
        members = pair.children()
        if len(members) != 2:
            raise _wrong("an entry is not an identifier and a value")
        oid = members[0].oid()
        name = oid.removeprefix(f"{prefix}.")
        if name in fields:
            raise _wrong(f"{oid} comes twice")
        fields[name] = members[1]
    return fields


def _required(fields: dict[str, Element], name: str) -> Element:
    if name not in fields:
        raise _wrong(f"entry {name} is missing")
    return fields[name]


def _optional(
    element: Element | None, read: Callable[[Element], _Value]
) -> _Value | None:
    return None if element is None else read(element)


def _octets(element: Element, length: int, name: str) -> bytes:
    octets = element.octets()
    if len(octets) != length:
        raise _wrong(
            f"{name} has the wrong length",
            expected=f"{length} bytes",
            got=f"{len(octets)} bytes",
        )
    return octets


def _svn(element: Element, *, maximum: int) -> int:
    svn = element.integer()
    if not 0 <= svn <= maximum:
        raise _wrong("SVN is out of range", expected=f"0..{maximum}", got=str(svn))
    return svn


def _sgx_type(element: Element) -> SgxType:
    number = element.enumerated()
    if not 0 <= number < len(SGX_TYPES):
        raise _wrong("SGX type is unknown", expected="0, 1 or 2", got=str(number))
    return SGX_TYPES[number]


def _wrong(what: str, *, expected: str = "", got: str = "") -> VerificationError:
    return VerificationError(
        what, code="pck-extension", expected=expected, got=got, step=2
    )
