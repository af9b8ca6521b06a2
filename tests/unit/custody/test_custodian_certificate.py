from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from tests.support.addresses import free_addresses
from tests.support.running import Run

from cloister.custody.certificate import (
    CustodianCertificate,
    make_custodian_certificate,
    verify_custodian_certificate,
)
from cloister.errors import VerificationError
from cloister.plan.site import Address
from cloister.ratls.certificate import (
    BACKDATED,
    CLOCK_TOLERANCE,
    MAX_CERTIFICATE_BYTES,
    SERVER_NAME,
    SIGNATURES_ONLY,
)
from cloister.ratls.channels import enrolment_credentials, listen, open_channel
from cloister.ratls.identity import NodeIdentity, new_identity, spki_of

# TLS looks at the real clock.
START = datetime.now(UTC).replace(microsecond=0)
LIFE = timedelta(days=1)
PARTY_KEY = Ed25519PrivateKey.generate()
IDENTITY = new_identity()

# Damaged certificates make the library complain of serial numbers below one.
pytestmark = pytest.mark.filterwarnings(
    "ignore::cryptography.utils.CryptographyDeprecationWarning"
)


def certificate_for(identity: NodeIdentity, *, key: Ed25519PrivateKey) -> bytes:
    return make_custodian_certificate(
        "alice", key, identity.tls_key, at=START, life=LIFE
    )


DER = certificate_for(IDENTITY, key=PARTY_KEY)


def verify(
    der: bytes, *, party: str = "alice", at: datetime = START
) -> CustodianCertificate:
    return verify_custodian_certificate(
        der, party=party, party_key=PARTY_KEY.public_key(), at=at
    )


def code_of(der: bytes, *, party: str = "alice", at: datetime = START) -> str:
    with pytest.raises(VerificationError) as caught:
        verify(der, party=party, at=at)
    prefix, code = caught.value.code[:22], caught.value.code[22:]
    assert prefix == "custodian-certificate-"
    return code


Extension = tuple[x509.ExtensionType, bool]
CONSTRAINTS: Extension = (x509.BasicConstraints(ca=False, path_length=None), True)
SERVER_AUTH, CLIENT_AUTH = (
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.CLIENT_AUTH,
)
USAGE: Extension = (x509.ExtendedKeyUsage([SERVER_AUTH]), True)
SIGNS: Extension = (SIGNATURES_ONLY, True)
NAMES: Extension = (x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), False)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a certificate is made of; each attack changes one thing."""

    signing_key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey = PARTY_KEY
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey = field(
        default_factory=IDENTITY.tls_key.public_key
    )
    issuer: str = "party alice"
    subject: str = "custodian of alice"
    extensions: tuple[Extension, ...] = (CONSTRAINTS, USAGE, SIGNS, NAMES)

    def sign(self) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.subject))
            .issuer_name(_name(self.issuer))
            .public_key(self.key)
            .serial_number(1)
            .not_valid_before(START)
            .not_valid_after(START + LIFE)
        )
        for value, critical in self.extensions:
            builder = builder.add_extension(value, critical=critical)
        signed_with_ed25519 = isinstance(self.signing_key, Ed25519PrivateKey)
        return builder.sign(
            self.signing_key, None if signed_with_ed25519 else hashes.SHA256()
        ).public_bytes(Encoding.DER)


def test_a_certificate_reads_as_made() -> None:
    read = verify(DER)
    assert read.der == DER
    assert read.spki == IDENTITY.tls_spki


def test_a_draft_without_changes_is_a_good_certificate() -> None:
    assert verify(Draft().sign()).spki == IDENTITY.tls_spki


def test_every_flipped_bit_is_refused() -> None:
    for bit in range(8 * len(DER)):
        flipped = bytearray(DER)
        flipped[bit // 8] ^= 1 << bit % 8
        code_of(bytes(flipped))


def test_every_prefix_is_refused() -> None:
    for length in range(len(DER)):
        assert code_of(DER[:length]) == "malformed"


def test_bytes_after_the_end_are_refused() -> None:
    assert code_of(DER + b"\0") == "malformed"


@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_but_a_verification_error(der: bytes) -> None:
    with pytest.raises(VerificationError):
        verify(der)


@given(st.integers(0, len(DER)), st.integers(0, 12), st.binary(max_size=8))
def test_no_damage_is_accepted_or_an_internal_error(
    start: int, length: int, patch: bytes
) -> None:
    damaged = DER[:start] + patch + DER[start + length :]
    if damaged != DER:
        with pytest.raises(VerificationError):
            verify(damaged)


@given(st.integers(0, 400), st.integers(0, 12), st.binary(max_size=8))
def test_damage_the_party_signed_is_never_an_internal_error(
    start: int, length: int, patch: bytes
) -> None:
    body = x509.load_der_x509_certificate(DER).tbs_certificate_bytes
    damaged = body[:start] + patch + body[start + length :]
    with contextlib.suppress(VerificationError):
        verify(signed(damaged))


def test_an_oversized_certificate_is_refused_before_it_is_parsed() -> None:
    assert code_of(DER + bytes(MAX_CERTIFICATE_BYTES)) == "size"


def test_another_partys_key_is_refused() -> None:
    stranger = Ed25519PrivateKey.generate()
    assert code_of(certificate_for(IDENTITY, key=stranger)) == "signature"


def test_a_key_that_signs_for_itself_is_refused() -> None:
    own = Draft(signing_key=IDENTITY.tls_key)
    assert code_of(own.sign()) == "signature"


def test_a_certificate_says_outside_what_it_says_inside() -> None:
    """The algorithm stands twice, and the second time it is not signed."""
    ed25519 = b"\x30\x05\x06\x03\x2b\x65\x70"
    at = DER.rindex(ed25519)
    for other in (b"\x30\x05\x06\x03\x2b\x65\x71", b"\x30\x05\x06\x03\x2b\x65\x6e"):
        changed = DER[:at] + other + DER[at + len(ed25519) :]
        assert code_of(changed) == "malformed"


@pytest.mark.parametrize(
    ("issuer", "subject"),
    [
        ("party bob", "custodian of bob"),
        ("party bob", "custodian of alice"),
        ("party alice", "custodian of bob"),
        ("custodian of alice", "party alice"),
        ("party alice", "custodian of alice "),
        ("party alice", "custodian of Alice"),
    ],
)
def test_another_name_is_refused(issuer: str, subject: str) -> None:
    assert code_of(Draft(issuer=issuer, subject=subject).sign()) == "name"


def test_a_party_with_the_same_key_is_another_party() -> None:
    assert code_of(DER, party="bob") == "name"


def test_a_certificate_lives_as_long_as_it_says() -> None:
    verify(DER, at=START + LIFE)
    assert code_of(DER, at=START + LIFE + timedelta(seconds=1)) == "expired"


def test_a_certificate_from_the_future_is_refused_beyond_the_tolerance() -> None:
    earliest = START - BACKDATED - CLOCK_TOLERANCE
    verify(DER, at=earliest)
    assert code_of(DER, at=earliest - timedelta(seconds=1)) == "not-yet-valid"


def test_tls_libraries_whose_host_is_hours_behind_accept_a_certificate() -> None:
    made = x509.load_der_x509_certificate(DER)
    assert made.not_valid_before_utc == START - timedelta(days=1)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        rsa.generate_private_key(65537, 2048).public_key(),
    ],
)
def test_a_key_of_another_kind_is_refused(
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
) -> None:
    assert code_of(Draft(key=key).sign()) == "key"


def test_another_encoding_of_the_key_is_refused() -> None:
    public = IDENTITY.tls_key.public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    # SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING point }
    compressed = (
        bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    )
    body = x509.load_der_x509_certificate(Draft().sign()).tbs_certificate_bytes
    assert body.startswith(b"\x30\x82")
    der = signed(sequence(body[4:].replace(spki_of(public), compressed)))
    read = x509.load_der_x509_certificate(der).public_key()
    assert read == public
    assert code_of(der) == "key"


MORE: Extension = (x509.SubjectKeyIdentifier(b"key"), False)
UNKNOWN: Extension = (
    x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b""),
    True,
)


def authority(path_length: int | None) -> Extension:
    return (x509.BasicConstraints(ca=True, path_length=path_length), True)


def for_use(*usages: x509.ObjectIdentifier) -> Extension:
    return (x509.ExtendedKeyUsage(usages), True)


def named(*names: str) -> Extension:
    return (x509.SubjectAlternativeName([x509.DNSName(it) for it in names]), False)


def signing(*, key_cert_sign: bool = False, key_agreement: bool = False) -> Extension:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=key_agreement,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    return (usage, True)


def test_a_draft_without_changes_has_the_extensions_of_the_layout() -> None:
    made, draft = (x509.load_der_x509_certificate(it) for it in (DER, Draft().sign()))
    assert list(made.extensions) == list(draft.extensions)


@pytest.mark.parametrize(
    "extensions",
    [
        (),
        (CONSTRAINTS, USAGE, SIGNS),
        (CONSTRAINTS, USAGE, NAMES),
        (CONSTRAINTS, SIGNS, NAMES),
        (USAGE, SIGNS, NAMES),
        (USAGE, CONSTRAINTS, SIGNS, NAMES),
        (CONSTRAINTS, USAGE, SIGNS, NAMES, MORE),
        (CONSTRAINTS, USAGE, SIGNS, NAMES, UNKNOWN),
        (authority(None), USAGE, SIGNS, NAMES),
        (authority(0), USAGE, SIGNS, NAMES),
        ((CONSTRAINTS[0], False), USAGE, SIGNS, NAMES),
        (CONSTRAINTS, (USAGE[0], False), SIGNS, NAMES),
        (CONSTRAINTS, USAGE, (SIGNS[0], False), NAMES),
        (CONSTRAINTS, USAGE, SIGNS, (NAMES[0], True)),
        (CONSTRAINTS, for_use(CLIENT_AUTH), SIGNS, NAMES),
        (CONSTRAINTS, for_use(SERVER_AUTH, CLIENT_AUTH), SIGNS, NAMES),
        (CONSTRAINTS, USAGE, signing(key_cert_sign=True), NAMES),
        (CONSTRAINTS, USAGE, signing(key_agreement=True), NAMES),
        (CONSTRAINTS, USAGE, SIGNS, named("example.com")),
        (CONSTRAINTS, USAGE, SIGNS, named(SERVER_NAME, "example.com")),
    ],
)
def test_any_other_role_is_refused(extensions: tuple[Extension, ...]) -> None:
    assert code_of(Draft(extensions=extensions).sign()) == "role"


def test_any_extension_given_twice_is_refused() -> None:
    # The library does not write such a thing, so the second one's name is patched in.
    draft = Draft(extensions=(CONSTRAINTS, USAGE, SIGNS, NAMES, MORE))
    body = x509.load_der_x509_certificate(draft.sign()).tbs_certificate_bytes
    names, more = b"\x06\x03\x55\x1d\x11", b"\x06\x03\x55\x1d\x0e"
    assert more in body
    assert code_of(signed(body.replace(more, names))) == "malformed"


def signed(body: bytes) -> bytes:
    """Returns a certificate of any body, signed by the party's key."""
    algorithm = b"\x30\x05\x06\x03\x2b\x65\x70"
    return sequence(body + algorithm + b"\x03\x41\x00" + PARTY_KEY.sign(body))


def sequence(content: bytes) -> bytes:
    """Returns a DER sequence of more than 127 bytes."""
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return b"\x30" + bytes([0x80 | len(length)]) + length + content


ECHO = "/cloister.Test/Echo"
UnaryUnary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


@asynccontextmanager
async def custodian_port(
    identity: NodeIdentity, certificate: bytes, address: Address
) -> AsyncIterator[None]:
    """A port that shows a custodian's certificate and repeats what it is told."""

    async def echo(request: bytes, _: object) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "cloister.Test", {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    )
    server.add_generic_rpc_handlers((handler,))
    listen(server, address, enrolment_credentials(identity, certificate))
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def say(address: Address, *, pinned: bytes) -> bytes:
    """Says hello through a channel with one pinned certificate."""
    channel = open_channel(address, pinned_certificate=pinned, max_message_bytes=1024)
    async with channel:
        call: UnaryUnary = channel.unary_unary(ECHO)
        return await call(b"hello")


def test_a_channel_pinned_to_it_speaks_to_its_custodian(run: Run) -> None:
    """Though it is not self-signed, and its issuer is no certificate at all."""

    async def story() -> bytes:
        [address] = free_addresses(1)
        async with custodian_port(IDENTITY, DER, address):
            return await say(address, pinned=verify(DER).der)

    assert run(story()) == b"hello"


@pytest.mark.parametrize("same_party", ["same party", "another party"])
def test_a_channel_pinned_to_another_custodian_says_nothing(
    run: Run, same_party: str
) -> None:
    """Also to another process of the same custodian: one leaf is trusted, no issuer."""
    key = PARTY_KEY if same_party == "same party" else Ed25519PrivateKey.generate()
    other = certificate_for(new_identity(), key=key)

    async def story() -> grpc.StatusCode:
        [address] = free_addresses(1)
        async with custodian_port(IDENTITY, DER, address):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await say(address, pinned=other)
            return caught.value.code()

    assert run(story()) is grpc.StatusCode.UNAVAILABLE


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
