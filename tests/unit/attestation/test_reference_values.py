from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cloister.attestation.reference_values import (
    SgxExactReference,
    SgxReference,
    TdxReference,
)
from cloister.errors import ConfigError

SIGNED: dict[str, Any] = {"mr_signer": "b" * 64, "isv_prod_id": 0, "min_isv_svn": 0}
DOMAIN = TdxReference(mrtd="a" * 96, rtmr0="b" * 96, rtmr1="c" * 96, rtmr2="d" * 96)


def code_of(kind: type[msgspec.Struct], **values: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        kind(**values)
    return refusal.value.code


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "*"])
@pytest.mark.parametrize("kind", [SgxReference, SgxExactReference])
def test_a_measurement_that_is_not_whole_is_refused(
    kind: type[msgspec.Struct], text: str
) -> None:
    assert code_of(kind, mr_enclave=text) == "policy-measurement"


def test_the_two_forms_of_an_enclave_are_accepted() -> None:
    SgxReference(mr_enclave="a" * 64)
    SgxReference(**SIGNED)


@pytest.mark.parametrize("missing", list(SIGNED))
def test_a_product_needs_all_three_values(missing: str) -> None:
    values = {name: value for name, value in SIGNED.items() if name != missing}
    assert code_of(SgxReference, **values) == "policy-reference"


@pytest.mark.parametrize("also", list(SIGNED))
def test_an_enclave_is_named_by_one_form_only(also: str) -> None:
    values = {"mr_enclave": "a" * 64, also: SIGNED[also]}
    assert code_of(SgxReference, **values) == "policy-reference"


def test_an_entry_that_names_nothing_is_refused() -> None:
    assert code_of(SgxReference) == "policy-reference"
    assert code_of(SgxExactReference) == "policy-reference"
    assert code_of(SgxExactReference, isv_prod_id=1, isv_svn=1) == "policy-reference"


@pytest.mark.parametrize("number", [-1, 65_536])
@pytest.mark.parametrize("name", ["isv_prod_id", "min_isv_svn"])
def test_a_number_that_no_enclave_can_have_is_refused(name: str, number: int) -> None:
    values = {**SIGNED, name: number}
    assert code_of(SgxReference, **values) == "policy-measurement"


@pytest.mark.parametrize("register", TdxReference.__struct_fields__)
@pytest.mark.parametrize("text", ["", "a" * 64, "A" * 96, "a" * 95 + "\n"])
def test_a_register_that_is_not_whole_is_refused(register: str, text: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        msgspec.structs.replace(DOMAIN, **{register: text})
    assert refusal.value.code == "policy-measurement"
    assert register in refusal.value.what


@pytest.mark.parametrize("register", ["mrtd", "rtmr0", "rtmr1", "rtmr2"])
def test_a_trust_domain_needs_all_that_the_host_could_change(register: str) -> None:
    values = msgspec.structs.asdict(DOMAIN)
    del values[register]
    with pytest.raises(TypeError):
        TdxReference(**values)
    with pytest.raises(msgspec.ValidationError, match=register):
        msgspec.convert(
            {name: value for name, value in values.items() if value}, TdxReference
        )
