from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from http import HTTPStatus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.attestation.pcs_servers import saying

from cloister.attestation.collateral import Collateral
from cloister.attestation.pcs_messages import (
    PCK_CRL_CHAIN,
    Replies,
    collateral_from_replies,
    crl_der,
    issuer_chain,
)
from cloister.attestation.pcs_transport import Reply
from cloister.attestation.platforms.simulated.collateral import simulated_collateral
from cloister.attestation.platforms.simulated.pccs import Answer
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.errors import ProtocolError

ROUTES = {
    "tcb_info": "/sgx/certification/v4/tcb",
    "qe_identity": "/sgx/certification/v4/qe/identity",
    "pck_crl": "/sgx/certification/v4/pckcrl",
    "root_ca_crl": "/sgx/certification/v4/rootcacrl",
}
PEM = b"-----BEGIN CERTIFICATE-----\nAA+A\n-----END CERTIFICATE-----\n"


def reply(body: bytes = b"", **headers: str) -> Reply:
    return Reply(
        url="https://pccs.example",
        body=body,
        headers={
            name.replace("_", "-").lower(): (value,) for name, value in headers.items()
        },
    )


@pytest.fixture(scope="module")
def replies(root: SimulatedRoot, at: datetime) -> Replies:
    change = saying(simulated_collateral(root, tee="sgx", at=at))

    def said(target: str) -> Reply:
        answer = change(target, Answer(status=HTTPStatus.OK))
        return Reply(
            url=target,
            body=answer.body,
            headers={name.lower(): (value,) for name, value in answer.headers},
        )

    return Replies(**{name: said(target) for name, target in ROUTES.items()})


@pytest.mark.parametrize("name", list(ROUTES))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_changed_answer_is_collateral_or_our_error(
    replies: Replies, name: str, data: st.DataObject
) -> None:
    original: Reply = getattr(replies, name)
    body = bytearray(original.body)
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 8)))
    body[start:end] = data.draw(st.binary(max_size=8))
    with suppress(ProtocolError):
        changed = replace(replies, **{name: replace(original, body=bytes(body))})
        assert isinstance(collateral_from_replies(changed), Collateral)


@settings(max_examples=150, deadline=None)
@given(value=st.text(st.characters(max_codepoint=0xFF), max_size=200))
def test_any_header_is_a_chain_or_our_error(value: str) -> None:
    got = reply(SGX_PCK_CRL_Issuer_Chain=value)
    with suppress(ProtocolError):
        assert issuer_chain(got, header=PCK_CRL_CHAIN).startswith(b"-----BEGIN")


@pytest.mark.parametrize(
    "value",
    [
        "-----BEGIN%20CERTIFICATE-----%0AAA%2BA%0A-----END%20CERTIFICATE-----%0A",
        # A plus sign is one, and no space, as services that encode less have it.
        "-----BEGIN CERTIFICATE-----%0AAA+A%0A-----END CERTIFICATE-----%0A",
    ],
)
def test_a_chain_is_url_encoded_pem(value: str) -> None:
    got = reply(SGX_PCK_CRL_Issuer_Chain=value)
    assert issuer_chain(got, header=PCK_CRL_CHAIN) == PEM


def test_a_list_comes_in_der_or_in_hex() -> None:
    der = bytes.fromhex("30820102") + b"\0" * 258
    for body in (der, der.hex().encode(), der.hex().upper().encode() + b"\n"):
        assert crl_der(reply(body)) == der
    # What is neither is left for the parser to refuse.
    assert crl_der(reply(b"<html>")) == b"<html>"
