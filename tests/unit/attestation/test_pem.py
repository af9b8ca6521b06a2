from __future__ import annotations

import base64
import re

import pytest

from cloister.attestation.pem import MAX_CHAIN_PEM_BYTES, split_pem_chain
from cloister.errors import VerificationError

DERS = (b"first" * 30, b"second" * 20, b"third" * 27 + b"!")


def block(der: bytes) -> bytes:
    lines = re.findall(b".{1,64}", base64.b64encode(der))
    return (
        b"-----BEGIN CERTIFICATE-----\n"
        + b"\n".join(lines)
        + b"\n-----END CERTIFICATE-----\n"
    )


CHAIN = b"".join(map(block, DERS))

MALFORMED = {
    "nothing": b"",
    "text before": b"leaf:\n" + CHAIN,
    "text between": block(DERS[0]) + b"#\n" + block(DERS[1]) + block(DERS[2]),
    "text after": CHAIN + b"x",
    "two final NULs": CHAIN + b"\0\0",
    "another label": CHAIN.replace(b"CERTIFICATE", b"X509 CRL"),
    "a missing end": CHAIN[:-20],
    "a foreign character": CHAIN.replace(b"Zmly", b"Zm!y", 1),
    "a cut base64 group": block(DERS[0]).replace(b"Zm", b"Z", 1) + CHAIN,
    "unused bits set": block(b"!!").replace(b"ISE=", b"ISF=") + CHAIN,
}


def test_a_chain_comes_back_in_order() -> None:
    assert split_pem_chain(CHAIN, step=2) == DERS


@pytest.mark.parametrize(
    "chain",
    [CHAIN + b"\0", CHAIN.removesuffix(b"\n"), CHAIN.replace(b"\n", b"\r\n")],
    ids=["final NUL", "no final newline", "CRLF"],
)
def test_the_endings_that_intel_writes_are_accepted(chain: bytes) -> None:
    assert split_pem_chain(chain, step=2) == DERS


@pytest.mark.parametrize("chain", MALFORMED.values(), ids=MALFORMED.keys())
def test_anything_but_three_strict_blocks_is_refused(chain: bytes) -> None:
    with pytest.raises(VerificationError) as refusal:
        split_pem_chain(chain, step=2)
    assert refusal.value.code.startswith("certificate-chain")
    assert refusal.value.step == 2


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_chain_of_another_length_is_refused(count: int) -> None:
    with pytest.raises(VerificationError) as refusal:
        split_pem_chain(block(DERS[0]) * count, step=2)
    assert refusal.value.code == "certificate-chain-length"


def test_a_huge_chain_is_refused_before_it_is_read() -> None:
    with pytest.raises(VerificationError):
        split_pem_chain(CHAIN * 100, step=2)
    assert len(CHAIN) < MAX_CHAIN_PEM_BYTES
