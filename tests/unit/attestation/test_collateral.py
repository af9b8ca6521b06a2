from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime

import pytest

from cloister.attestation.collateral import (
    COLLATERAL_FIELDS,
    Collateral,
    collateral_from_parts,
    parse_collateral,
)
from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    simulated_collateral,
)
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import Tee
from cloister.errors import VerificationError

TEES: tuple[Tee, ...] = ("sgx", "tdx")
Shape = dict[str, str]


@pytest.fixture(params=TEES)
def shape(request: pytest.FixtureRequest, root: SimulatedRoot, at: datetime) -> Shape:
    return simulated_collateral(root, tee=request.param, at=at)


def refused(shape: object) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        parse_collateral(json.dumps(shape))
    return refusal.value


def parts(shape: Mapping[str, str]) -> dict[str, bytes]:
    signed = {
        name: f'{{"{member}":{shape[name]},"signature":"{shape[f"{name}_signature"]}"}}'
        for name, member in (
            ("tcb_info", "tcbInfo"),
            ("qe_identity", "enclaveIdentity"),
        )
    }
    return {
        "tcb_info_body": signed["tcb_info"].encode(),
        "tcb_info_issuer_chain_pem": shape["tcb_info_issuer_chain"].encode(),
        "qe_identity_body": signed["qe_identity"].encode(),
        "qe_identity_issuer_chain_pem": shape["qe_identity_issuer_chain"].encode(),
        "root_ca_crl_der": bytes.fromhex(shape["root_ca_crl"]),
        "pck_crl_der": bytes.fromhex(shape["pck_crl"]),
        "pck_crl_issuer_chain_pem": shape["pck_crl_issuer_chain"].encode(),
    }


def test_signed_texts_are_kept_to_the_byte(shape: Shape) -> None:
    collateral = parse_collateral(json.dumps(shape))
    assert collateral.tcb_info_text == shape["tcb_info"].encode()
    assert collateral.qe_identity_text == shape["qe_identity"].encode()
    assert collateral.root_ca_crl.der.hex() == shape["root_ca_crl"]
    assert collateral.pck_crl.der.hex() == shape["pck_crl"]
    assert json.loads(collateral.to_json()) == shape


def test_it_goes_to_json_and_comes_back(shape: Shape) -> None:
    collateral = parse_collateral(json.dumps(shape))
    assert parse_collateral(collateral.to_json()) == collateral
    assert parse_collateral(collateral.to_json().encode()) == collateral


def test_separate_answers_make_the_same(shape: Shape) -> None:
    made = collateral_from_parts(**parts(shape))
    assert made == parse_collateral(json.dumps(shape))


def test_a_signed_text_with_spaces_is_kept_as_it_is(
    root: SimulatedRoot, at: datetime
) -> None:
    shape = simulated_collateral(root, tee="sgx", at=at)
    spaced = json.dumps(SimulatedCollateral(tee="sgx", at=at).tcb_info(), indent=3)
    collateral = parse_collateral(json.dumps({**shape, "tcb_info": spaced}))
    assert collateral.tcb_info_text == spaced.encode()


@pytest.mark.parametrize("name", COLLATERAL_FIELDS)
def test_every_member_is_needed_and_text(shape: Shape, name: str) -> None:
    without = {key: value for key, value in shape.items() if key != name}
    assert refused(without).code == "collateral-malformed"
    others: tuple[object, ...] = (None, 1, [], {}, [shape[name]])
    for wrong in others:
        assert refused({**shape, name: wrong}).code == "collateral-malformed"
    assert refused({**shape, name: ""}).step in {3, 4}


@pytest.mark.parametrize("name", ["extra", "TCB_INFO", "version", ""])
def test_a_member_that_is_unknown_is_refused(shape: Shape, name: str) -> None:
    assert refused({**shape, name: "x"}).code == "collateral-malformed"


@pytest.mark.parametrize("content", ["anything", None, 1])
def test_the_chain_that_only_copies_the_quotes_is_not_looked_at(
    shape: Shape, content: object
) -> None:
    collateral = parse_collateral(
        json.dumps({**shape, "pck_certificate_chain": content})
    )
    assert collateral == parse_collateral(json.dumps(shape))
    assert "pck_certificate_chain" not in collateral.to_json()


def test_a_doubled_member_is_refused(shape: Shape) -> None:
    text = json.dumps(shape)
    doubled = text[:-1] + f', "pck_crl": {json.dumps(shape["pck_crl"])}}}'
    with pytest.raises(VerificationError):
        parse_collateral(doubled)


HEX = ["tcb_info_signature", "qe_identity_signature", "root_ca_crl", "pck_crl"]
CHAINS = [name for name in COLLATERAL_FIELDS if name.endswith("chain")]


@pytest.mark.parametrize("name", HEX)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text[:-2] + "0x",
        lambda text: " " + text,
        lambda text: text + "\n",
        lambda text: text[:2] + " " + text[2:],
        lambda text: text + "00",
        lambda text: "00" + text,
        lambda text: text[:-2],
    ],
)
def test_hexadecimal_of_another_form_is_refused(
    shape: Shape, name: str, change: Callable[[str], str]
) -> None:
    refused({**shape, name: change(shape[name])})


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text * 2,
        lambda text: text[: text.index("-----END")],
        lambda text: text[: text.index("-----BEGIN", 1)],
        lambda text: "x" + text,
        lambda text: text.replace("CERTIFICATE", "X509 CRL"),
        lambda text: text + "x",
        lambda text: text.replace("\n", "\n\n"),
        lambda text: text + "\u2028",
        lambda text: text + "\ud800",
        lambda text: text + " " * 20_000,
    ],
)
def test_a_chain_of_another_form_is_refused(
    shape: Shape, name: str, change: Callable[[str], str]
) -> None:
    error = refused({**shape, name: change(shape[name])})
    assert error.step in {3, 4}


def test_half_a_character_is_refused(shape: Shape) -> None:
    refused({**shape, "tcb_info": '{"\ud800":1}'})
    with pytest.raises(VerificationError):
        parse_collateral('{"\ud800":1}')


@pytest.mark.parametrize("tcb_info_body", [b"", b"{}", b"\xff", b'{"tcbInfo":{}}'])
def test_an_answer_of_another_form_is_refused(
    shape: Shape, tcb_info_body: bytes
) -> None:
    with pytest.raises(VerificationError):
        collateral_from_parts(**{**parts(shape), "tcb_info_body": tcb_info_body})


def test_nothing_long_is_in_a_repr(shape: Shape) -> None:
    collateral: Collateral = parse_collateral(json.dumps(shape))
    assert shape["tcb_info_signature"] not in repr(collateral)
    assert "BEGIN CERTIFICATE" not in repr(collateral)
