from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.der import (
    ENUMERATED,
    OCTET_STRING,
    encode,
    encode_boolean,
    encode_integer,
    encode_oid,
    encode_sequence,
)
from cloister.attestation.pck_extension import (
    SGX_EXTENSION_OID,
    PckExtension,
    parse_pck_extension,
)
from cloister.attestation.platforms.simulated import profile
from cloister.attestation.platforms.simulated.issuing import encode_pck_extension
from cloister.errors import VerificationError

Fields = dict[str, bytes]


def encoded(fields: Fields, prefix: str = SGX_EXTENSION_OID) -> bytes:
    return encode_sequence(
        *(
            encode_sequence(encode_oid(f"{prefix}.{arc}"), value)
            for arc, value in fields.items()
        )
    )


def tcb_fields() -> Fields:
    svns = (*range(1, 17), 300)
    fields = {str(arc): encode_integer(svn) for arc, svn in enumerate(svns, start=1)}
    return {**fields, "18": encode(OCTET_STRING, bytes(range(1, 17)))}


def extension_fields(tcb: Fields | None = None) -> Fields:
    return {
        "1": encode(OCTET_STRING, b"p" * 16),
        "2": encoded(tcb or tcb_fields(), f"{SGX_EXTENSION_OID}.2"),
        "3": encode(OCTET_STRING, b"\0\1"),
        "4": encode(OCTET_STRING, b"fmspc!"),
        "5": encode_integer(2, tag=ENUMERATED),
    }


def changed(arc: str, value: bytes) -> bytes:
    return encoded({**extension_fields(), arc: value})


def changed_tcb(arc: str, value: bytes) -> bytes:
    return encoded(extension_fields({**tcb_fields(), arc: value}))


def without(fields: Fields, arc: str) -> Fields:
    return {name: value for name, value in fields.items() if name != arc}


def refused(der: bytes) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        parse_pck_extension(der)
    assert refusal.value.code == "pck-extension"
    assert refusal.value.step == 2
    return refusal.value


def test_a_processor_extension_gives_every_field() -> None:
    assert parse_pck_extension(encoded(extension_fields())) == PckExtension(
        ppid=b"p" * 16,
        cpu_svn=bytes(range(1, 17)),
        component_svns=tuple(range(1, 17)),
        pce_svn=300,
        pce_id=b"\0\1",
        fmspc=b"fmspc!",
        sgx_type="scalable-with-integrity",
        platform_instance_id=None,
        dynamic_platform=None,
        cached_keys=None,
        smt=None,
    )


def test_a_platform_extension_gives_instance_and_configuration() -> None:
    parsed = parse_pck_extension(
        encode_pck_extension(ppid=b"p" * 16, platform_instance_id=b"i" * 16)
    )
    assert parsed.platform_instance_id == b"i" * 16
    assert (parsed.dynamic_platform, parsed.cached_keys, parsed.smt) == (
        False,
        False,
        True,
    )
    assert parsed.fmspc == profile.FMSPC
    assert parsed.sgx_type == "scalable"


def test_a_field_added_later_by_intel_is_passed_over() -> None:
    parse_pck_extension(changed("9", encode_integer(1)))


@pytest.mark.parametrize("arc", ["1", "2", "3", "4", "5"])
def test_a_missing_field_is_refused(arc: str) -> None:
    assert "missing" in refused(encoded(without(extension_fields(), arc))).what


@pytest.mark.parametrize("arc", [str(number) for number in range(1, 19)])
def test_a_missing_svn_is_refused(arc: str) -> None:
    assert (
        "missing" in refused(encoded(extension_fields(without(tcb_fields(), arc)))).what
    )


@pytest.mark.parametrize("arc", [str(number) for number in range(1, 17)])
def test_a_component_that_contradicts_the_cpusvn_is_refused(arc: str) -> None:
    assert "contradict" in refused(changed_tcb(arc, encode_integer(99))).what


WRONG: dict[str, Callable[[], bytes]] = {
    "component SVN of 256": lambda: changed_tcb("1", encode_integer(256)),
    "negative component SVN": lambda: changed_tcb("1", encode(0x02, b"\xff")),
    "PCESVN of 65536": lambda: changed_tcb("17", encode_integer(65_536)),
    "CPUSVN of 15 bytes": lambda: changed_tcb("18", encode(OCTET_STRING, bytes(15))),
    "PPID of 17 bytes": lambda: changed("1", encode(OCTET_STRING, bytes(17))),
    "PCEID of one byte": lambda: changed("3", encode(OCTET_STRING, bytes(1))),
    "FMSPC of no bytes": lambda: changed("4", encode(OCTET_STRING, b"")),
    "SGX type 3": lambda: changed("5", encode_integer(3, tag=ENUMERATED)),
    "negative SGX type": lambda: changed("5", encode(ENUMERATED, b"\xff")),
    "SGX type as integer": lambda: changed("5", encode_integer(1)),
    "instance of 15 bytes": lambda: changed("6", encode(OCTET_STRING, bytes(15))),
    "configuration that is no sequence": lambda: changed("7", encode_integer(1)),
    "SMT as integer": lambda: changed(
        "7", encoded({"3": encode_integer(1)}, f"{SGX_EXTENSION_OID}.7")
    ),
    "an entry of three": lambda: encode_sequence(
        encode_sequence(encode_oid("1.2.3"), encode_integer(1), encode_integer(2))
    ),
    "no sequence": lambda: encode_integer(1),
    "nothing": lambda: b"",
    "a field twice": lambda: encode_sequence(
        *[encode_sequence(encode_oid("1.2.3"), encode_boolean(value=True))] * 2
    ),
}


@pytest.mark.parametrize("made", WRONG.values(), ids=WRONG.keys())
def test_a_field_of_a_wrong_form_is_refused(made: Callable[[], bytes]) -> None:
    refused(made())


@given(
    position=st.integers(min_value=0, max_value=10_000),
    value=st.integers(min_value=0, max_value=255),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_changed_byte_is_parsed_or_refused_and_nothing_else(
    position: int, value: int
) -> None:
    der = bytearray(
        encode_pck_extension(ppid=bytes(16), platform_instance_id=bytes(16))
    )
    der[position % len(der)] = value
    with suppress(VerificationError):
        assert len(parse_pck_extension(bytes(der)).ppid) == 16
