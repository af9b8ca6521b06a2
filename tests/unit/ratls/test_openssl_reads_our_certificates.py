"""The openssl command, an independent reader, finds in our certificates what we meant.

`make tools` installs it.
"""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from tests.support.federation_in_memory import START, Federation

from cloister.custody.certificate import make_custodian_certificate
from cloister.plan.keys import format_party_key
from cloister.ratls.admission import AdmissionAuthority, new_authority
from cloister.ratls.admission_table import Peer
from cloister.ratls.certificate import SERVER_NAME, make_certificate
from cloister.ratls.identity import new_identity
from cloister.ratls.proofs import Identified

LIFE = timedelta(hours=12)
IDENTITY = new_identity()
PARTY_KEY = Ed25519PrivateKey.generate()
FOR_SERVERS = "TLS Web Server Authentication"
FOR_CLIENTS = "TLS Web Client Authentication"


@pytest.fixture(scope="module")
def authority() -> AdmissionAuthority:
    return new_authority(at=START, life=LIFE)


@pytest.fixture(scope="module")
def admission(authority: AdmissionAuthority) -> bytes:
    peer = Peer(
        role="worker",
        party="alice",
        epoch=7,
        tls_key=IDENTITY.tls_spki,
        encryption_key=IDENTITY.encryption_public,
        standing=Identified(party_key=format_party_key(PARTY_KEY)),
    )
    return authority.issue(peer, at=START, expires_at=START + LIFE)


@pytest.fixture(scope="module")
def evidence(federation: Federation) -> bytes:
    platform = federation.platform("aggregator")
    return make_certificate(IDENTITY, platform, at=START, life=LIFE)


@pytest.fixture(scope="module")
def custodian() -> bytes:
    return make_custodian_certificate(
        "alice", PARTY_KEY, IDENTITY.tls_key, at=START, life=LIFE
    )


def openssl(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603 - an independent reader
        ["openssl", *arguments],  # noqa: S607 - wherever it is installed
        input=given,
        capture_output=True,
        check=False,
    )


def read(der: bytes) -> list[str]:
    """What openssl prints of a certificate for our key, a line each."""
    of = ("x509", "-inform", "DER", "-noout")
    key = openssl(*of, "-pubkey", given=der)
    spki = openssl("pkey", "-pubin", "-outform", "DER", given=key.stdout)
    assert spki.stdout == IDENTITY.tls_spki
    text = openssl(*of, "-text", "-nameopt", "RFC2253", given=der)
    assert text.returncode == 0, text.stderr
    return [line.strip() for line in text.stdout.decode().splitlines()]


def extensions(lines: list[str]) -> list[tuple[str, str]]:
    """The name of each extension of ours and the line that follows it."""
    begin = lines.index("X509v3 extensions:")
    return [
        (line, lines[at + 1])
        for at, line in enumerate(lines)
        if at > begin and line.startswith(("X509v3", "2.23."))
    ]


END_ENTITY = ("X509v3 Basic Constraints: critical", "CA:FALSE")
SIGNATURES_ONLY = ("X509v3 Key Usage: critical", "Digital Signature")
SERVER_NAMES = ("X509v3 Subject Alternative Name:", f"DNS:{SERVER_NAME}")


def test_a_servers_certificate_carries_evidence_and_serves_only(
    evidence: bytes,
) -> None:
    lines = read(evidence)
    *standard, (name, _) = extensions(lines)
    assert standard == [
        END_ENTITY,
        ("X509v3 Extended Key Usage: critical", FOR_SERVERS),
        SIGNATURES_ONLY,
        SERVER_NAMES,
    ]
    assert name == "2.23.133.5.4.9:"
    assert f"Subject: CN={SERVER_NAME}" in lines
    assert "Signature Algorithm: ecdsa-with-SHA256" in lines


def test_an_admission_certificate_is_for_a_client_without_a_host_name(
    admission: bytes,
) -> None:
    lines = read(admission)
    assert extensions(lines) == [
        END_ENTITY,
        ("X509v3 Extended Key Usage: critical", FOR_CLIENTS),
        SIGNATURES_ONLY,
    ]
    assert "Subject: CN=worker alice epoch 7" in lines
    assert "Issuer: CN=Cloister admission" in lines


def test_a_custodians_certificate_is_its_partys(custodian: bytes) -> None:
    lines = read(custodian)
    assert extensions(lines) == [
        END_ENTITY,
        ("X509v3 Extended Key Usage: critical", FOR_SERVERS),
        SIGNATURES_ONLY,
        SERVER_NAMES,
    ]
    assert "Subject: CN=custodian of alice" in lines
    assert "Issuer: CN=party alice" in lines
    assert "Signature Algorithm: ED25519" in lines


def test_the_partys_key_signed_its_custodians_certificate(
    custodian: bytes, tmp_path: Path
) -> None:
    """Also in the eyes of openssl, which is given the bare key."""
    certificate = x509.load_der_x509_certificate(custodian)
    body, signature, key = (tmp_path / name for name in ("body", "signature", "key"))
    body.write_bytes(certificate.tbs_certificate_bytes)
    signature.write_bytes(certificate.signature)
    # SubjectPublicKeyInfo of an Ed25519 key, RFC 8410.
    prefix = bytes.fromhex("302a300506032b6570032100")
    outcomes = []
    for signer in (PARTY_KEY, Ed25519PrivateKey.generate()):
        key.write_bytes(prefix + signer.public_key().public_bytes_raw())
        done = openssl(
            *("pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER"),
            *("-inkey", str(key), "-in", str(body), "-sigfile", str(signature)),
        )
        outcomes.append(done.returncode == 0)
    assert outcomes == [True, False]


def verified(certificate: bytes, root: bytes, *, purpose: str, directory: Path) -> bool:
    """Whether openssl trusts a certificate for a purpose, under one root alone."""
    paths = [directory / "certificate.pem", directory / "root.pem"]
    for path, der in zip(paths, (certificate, root), strict=True):
        path.write_bytes(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM))
    done = openssl(
        *("verify", "-partial_chain", "-no-CAfile", "-no-CApath"),
        *("-no-CAstore", "-purpose", purpose),
        *("-trusted", str(paths[1]), str(paths[0])),
    )
    assert done.returncode == 0 or b"verification failed" in done.stderr
    return done.returncode == 0


@pytest.mark.parametrize(
    ("purpose", "trusted"), [("sslclient", "yes"), ("sslserver", "no")]
)
def test_an_admitted_client_can_pose_as_no_server(
    authority: AdmissionAuthority,
    admission: bytes,
    tmp_path: Path,
    purpose: str,
    trusted: str,
) -> None:
    """Not even to somebody who trusts the admission CA."""
    root = authority.certificate.public_bytes(Encoding.DER)
    found = verified(admission, root, purpose=purpose, directory=tmp_path)
    assert found == (trusted == "yes")


def test_an_admission_certificate_is_worth_nothing_under_another_authority(
    admission: bytes, tmp_path: Path
) -> None:
    other = new_authority(at=START, life=LIFE).certificate.public_bytes(Encoding.DER)
    assert not verified(admission, other, purpose="sslclient", directory=tmp_path)


@pytest.mark.parametrize("kind", ["evidence", "custodian"])
def test_a_pinned_leaf_is_a_server_and_no_client(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    leaf: bytes = request.getfixturevalue(kind)
    assert verified(leaf, leaf, purpose="sslserver", directory=tmp_path)
    assert not verified(leaf, leaf, purpose="sslclient", directory=tmp_path)
