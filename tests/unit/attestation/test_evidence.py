from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.evidence import (
    BODY_TD_15,
    MAX_QUOTE_BYTES,
    parse_evidence,
)
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.profile import Machine
from cloister.attestation.platforms.simulated.quotes import (
    QUOTE_FORMS,
    SGX_V5,
    TD_10_V5,
    TD_15_V5,
    QuoteForm,
)
from cloister.attestation.reports import (
    SgxReport,
    TdReport,
    Tee,
    parse_sgx_report,
    parse_td_report,
    parse_td_report_15,
)
from cloister.errors import VerificationError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
# Where each version's signature data begins: after header, body and its length.
SIGNATURE_AT: dict[Tee, int] = {"sgx": 436, "tdx": 636}


def replaced(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


def name_of(form: QuoteForm) -> str:
    return f"{form.tee}-{form.body_type}-v{form.version}"


def signed_length(form: QuoteForm) -> int:
    descriptor = 6 if form.version >= 5 else 0
    return 48 + descriptor + {1: 384, 2: 584, 3: 648}[form.body_type]


def refusal_of(quote: bytes) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        parse_evidence(quote)
    assert refusal.value.step == 1
    return refusal.value


def test_an_sgx_quote_gives_what_was_measured(
    quotes: Mapping[Tee, bytes], measurement: Measurement
) -> None:
    evidence = parse_evidence(quotes["sgx"])
    assert isinstance(evidence.report, SgxReport)
    assert (evidence.version, evidence.tee) == (3, "sgx")
    assert evidence.report.mr_enclave == measurement.mr_enclave
    assert evidence.report.mr_signer == measurement.mr_signer
    assert evidence.report.isv_prod_id == measurement.isv_prod_id
    assert evidence.report.isv_svn == measurement.isv_svn
    assert evidence.report.report_data == bytes(range(64))
    assert evidence.report.attributes.initialised
    assert evidence.report.attributes.mode64
    assert not evidence.report.attributes.debug
    assert evidence.signed_bytes == quotes["sgx"][:432]


def test_a_tdx_quote_gives_what_was_measured(
    quotes: Mapping[Tee, bytes], measurement: Measurement
) -> None:
    evidence = parse_evidence(quotes["tdx"])
    assert isinstance(evidence.report, TdReport)
    assert (evidence.version, evidence.tee) == (4, "tdx")
    assert evidence.report.mrtd == measurement.mrtd
    assert evidence.report.rtmr0 == measurement.rtmr0
    assert evidence.report.rtmr1 == measurement.rtmr1
    assert evidence.report.rtmr2 == measurement.rtmr2
    assert evidence.report.rtmr3 == bytes(48)
    assert evidence.report.report_data == bytes(range(64))
    assert evidence.report.attributes.sept_ve_disable
    assert not evidence.report.attributes.debug
    assert evidence.signed_bytes == quotes["tdx"][:632]


def test_every_field_of_an_sgx_report_is_where_intel_puts_it() -> None:
    body = bytes(index % 251 for index in range(384))
    report = parse_sgx_report(body)
    assert report.cpu_svn == body[0:16]
    assert report.misc_select == int.from_bytes(body[16:20], "little")
    assert report.isv_ext_prod_id == body[32:48]
    assert report.attributes.flags == int.from_bytes(body[48:56], "little")
    assert report.attributes.xfrm == int.from_bytes(body[56:64], "little")
    assert report.mr_enclave == body[64:96]
    assert report.mr_signer == body[128:160]
    assert report.config_id == body[192:256]
    assert report.isv_prod_id == int.from_bytes(body[256:258], "little")
    assert report.isv_svn == int.from_bytes(body[258:260], "little")
    assert report.config_svn == int.from_bytes(body[260:262], "little")
    assert report.isv_family_id == body[304:320]
    assert report.report_data == body[320:384]


def test_every_field_of_a_td_report_is_where_intel_puts_it() -> None:
    body = bytes(index % 251 for index in range(584))
    report = parse_td_report(body)
    assert report.tee_tcb_svn == body[0:16]
    assert report.mrseam == body[16:64]
    assert report.mrsignerseam == body[64:112]
    assert report.seam_attributes == body[112:120]
    assert report.attributes.flags == int.from_bytes(body[120:128], "little")
    assert report.xfam == int.from_bytes(body[128:136], "little")
    assert report.mrtd == body[136:184]
    assert report.mrconfigid == body[184:232]
    assert report.mrowner == body[232:280]
    assert report.mrownerconfig == body[280:328]
    registers = [report.rtmr0, report.rtmr1, report.rtmr2, report.rtmr3]
    assert b"".join(registers) == body[328:520]
    assert report.report_data == body[520:584]


def test_every_field_of_a_td_report_15_is_where_intel_puts_it() -> None:
    body = bytes(index % 251 for index in range(648))
    report = parse_td_report_15(body)
    assert report.tee_tcb_svn2 == body[584:600]
    assert report.mrservicetd == body[600:648]
    base = parse_td_report(body[:584])
    assert (base.tee_tcb_svn2, base.mrservicetd) == (None, None)
    without = dataclasses.replace(report, tee_tcb_svn2=None, mrservicetd=None)
    assert without == base


@pytest.mark.parametrize("form", QUOTE_FORMS, ids=name_of)
def test_every_form_of_quote_is_read(judge: Judge, form: QuoteForm) -> None:
    machine = Machine(mrservicetd=bytes(range(48)))
    quote = judge.scenario(form, machine=machine).build(judge.root).quote
    evidence = parse_evidence(quote)
    assert (evidence.version, evidence.tee) == (form.version, form.tee)
    assert evidence.signed_bytes == quote[: signed_length(form)]
    assert isinstance(evidence.report, SgxReport if form.tee == "sgx" else TdReport)
    if isinstance(evidence.report, TdReport):
        extended = form.body_type == BODY_TD_15
        assert (evidence.report.mrservicetd is not None) == extended
        assert (evidence.report.tee_tcb_svn2 is not None) == extended


@pytest.mark.parametrize("form", QUOTE_FORMS, ids=name_of)
def test_every_truncation_of_every_form_is_refused(
    judge: Judge, form: QuoteForm
) -> None:
    quote = judge.scenario(form).build(judge.root).quote
    for length in range(len(quote)):
        assert refusal_of(quote[:length]).code == "quote-truncated"


@pytest.mark.parametrize("form", [SGX_V5, TD_10_V5, TD_15_V5], ids=name_of)
def test_a_body_of_another_type_than_its_tee_is_refused_by_name(
    judge: Judge, form: QuoteForm
) -> None:
    quote = judge.scenario(form).build(judge.root).quote
    for body_type in {0, 1, 2, 3, 4, 5, 65_535} - {form.body_type}:
        error = refusal_of(replaced(quote, 48, body_type.to_bytes(2, "little")))
        right_tee = {"sgx": {1}, "tdx": {2, 3}}[form.tee]
        code = "quote-body-size" if body_type in right_tee else "quote-body-unsupported"
        assert error.code == code
    assert "1.5 extended" in refusal_of(replaced(quote, 48, b"\4\0")).got


@pytest.mark.parametrize("form", [SGX_V5, TD_10_V5, TD_15_V5], ids=name_of)
@pytest.mark.parametrize("size", [0, 383, 385, 583, 585, 647, 649, 2**32 - 1])
def test_a_body_of_another_size_than_its_type_is_refused(
    judge: Judge, form: QuoteForm, size: int
) -> None:
    quote = judge.scenario(form).build(judge.root).quote
    error = refusal_of(replaced(quote, 50, size.to_bytes(4, "little")))
    assert error.code == "quote-body-size"
    assert error.got == f"{size} bytes"


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize("form", QUOTE_FORMS, ids=name_of)
def test_certification_types_without_a_chain_are_refused_by_name(
    judge: Judge, form: QuoteForm, kind: int
) -> None:
    quote = judge.scenario(form).build(judge.root).quote
    # Signature, key, QE report, its signature, auth length and 32 bytes of auth data.
    inner = 64 + 64 + (6 if form.version >= 4 else 0) + 384 + 64 + 2 + 32
    offset = signed_length(form) + 4 + inner
    error = refusal_of(replaced(quote, offset, kind.to_bytes(2, "little")))
    assert error.code == "certification-type-unsupported"
    assert error.got.startswith(f"{kind} (")
    assert "unknown" not in error.got


@pytest.mark.parametrize("size", [0, 383, 385])
def test_an_sgx_report_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(VerificationError):
        parse_sgx_report(bytes(size))


@pytest.mark.parametrize("size", [0, 583, 585, 648])
def test_a_td_report_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(VerificationError):
        parse_td_report(bytes(size))


@pytest.mark.parametrize("size", [0, 584, 647, 649])
def test_a_td_report_15_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(VerificationError):
        parse_td_report_15(bytes(size))


@pytest.mark.parametrize("tee", TEES)
@pytest.mark.parametrize("version", [0, 1, 2, 6, 65_535])
def test_other_quote_versions_are_refused_by_name(
    quotes: Mapping[Tee, bytes], tee: Tee, version: int
) -> None:
    error = refusal_of(replaced(quotes[tee], 0, version.to_bytes(2, "little")))
    assert error.code == "quote-version-unsupported"
    assert error.got == str(version)


@pytest.mark.parametrize(
    ("tee", "offset", "new", "code"),
    [
        ("sgx", 2, b"\x03\x00", "quote-key-type-unsupported"),
        ("tdx", 2, b"\x03\x00", "quote-key-type-unsupported"),
        ("sgx", 4, b"\x81\x00\x00\x00", "quote-body-unsupported"),
        # A TD report in an SGX quote ends elsewhere than the shorter SGX report.
        ("tdx", 4, b"\x00\x00\x00\x00", "quote-truncated"),
        ("tdx", 4, b"\x82\x00\x00\x00", "quote-body-unsupported"),
        ("sgx", 12, bytes(16), "quote-vendor-unknown"),
        ("tdx", 12, bytes(16), "quote-vendor-unknown"),
    ],
)
def test_other_headers_are_refused_by_name(
    quotes: Mapping[Tee, bytes], tee: Tee, offset: int, new: bytes, code: str
) -> None:
    assert refusal_of(replaced(quotes[tee], offset, new)).code == code


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 6, 7, 8])
def test_other_certification_data_is_refused_by_name(
    quotes: Mapping[Tee, bytes], kind: int
) -> None:
    # Signature, key, QE report, its signature, auth length and 32 bytes of auth data.
    sgx_type_at = SIGNATURE_AT["sgx"] + 64 + 64 + 384 + 64 + 2 + 32
    inner_type_at = SIGNATURE_AT["tdx"] + 64 + 64 + 6 + 384 + 64 + 2 + 32
    for tee, offset in (("sgx", sgx_type_at), ("tdx", inner_type_at)):
        quote = quotes["sgx" if tee == "sgx" else "tdx"]
        error = refusal_of(replaced(quote, offset, kind.to_bytes(2, "little")))
        assert error.code == "certification-type-unsupported"
        assert error.got.startswith(str(kind))


@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 7])
def test_a_tdx_quote_without_the_qe_report_wrapper_is_refused(
    quotes: Mapping[Tee, bytes], kind: int
) -> None:
    offset = SIGNATURE_AT["tdx"] + 64 + 64
    error = refusal_of(replaced(quotes["tdx"], offset, kind.to_bytes(2, "little")))
    assert error.code == "certification-type-unsupported"


@pytest.mark.parametrize("tee", TEES)
def test_zeros_after_the_quote_are_tolerated(
    quotes: Mapping[Tee, bytes], tee: Tee
) -> None:
    assert parse_evidence(quotes[tee] + bytes(3_065)) == parse_evidence(quotes[tee])


@pytest.mark.parametrize("tee", TEES)
@pytest.mark.parametrize("tail", [b"\x01", bytes(100) + b"\x80", b"x" * 70])
def test_anything_else_after_the_quote_is_refused(
    quotes: Mapping[Tee, bytes], tee: Tee, tail: bytes
) -> None:
    assert refusal_of(quotes[tee] + tail).code == "quote-trailing-bytes"


@pytest.mark.parametrize("tee", TEES)
def test_slack_inside_the_signature_data_is_refused(
    quotes: Mapping[Tee, bytes], tee: Tee
) -> None:
    start = SIGNATURE_AT[tee]
    length = len(quotes[tee]) - start + 1
    longer = replaced(quotes[tee], start - 4, length.to_bytes(4, "little")) + b"\0"
    assert refusal_of(longer).code == "quote-inner-slack"


@pytest.mark.parametrize("tee", TEES)
def test_every_truncation_is_refused(quotes: Mapping[Tee, bytes], tee: Tee) -> None:
    for length in range(len(quotes[tee])):
        assert refusal_of(quotes[tee][:length]).code == "quote-truncated"


def test_a_huge_quote_is_refused_before_it_is_read(quotes: Mapping[Tee, bytes]) -> None:
    huge = quotes["sgx"].ljust(MAX_QUOTE_BYTES + 1, b"\0")
    assert refusal_of(huge).code == "quote-too-large"


@given(data=st.binary(max_size=2_000))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_random_bytes_are_refused_and_nothing_else(data: bytes) -> None:
    refusal_of(data)


@given(
    tee=st.sampled_from(TEES),
    edits=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=1_300),
            st.integers(min_value=0, max_value=8),
            st.binary(max_size=8),
        ),
        min_size=1,
        max_size=4,
    ),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_edited_quotes_are_parsed_or_refused_and_nothing_else(
    quotes: Mapping[Tee, bytes], tee: Tee, edits: list[tuple[int, int, bytes]]
) -> None:
    quote = quotes[tee]
    for position, removed, inserted in edits:
        quote = quote[:position] + inserted + quote[position + removed :]
    with suppress(VerificationError):
        assert len(parse_evidence(quote).report.report_data) == 64
