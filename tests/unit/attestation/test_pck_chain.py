from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attestation.pck_chain import verified_pck_chain
from cloister.attestation.pck_extension import SGX_EXTENSION_OID
from cloister.attestation.platforms.simulated import issuing
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.root import (
    PCK_CHAIN_FILE,
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.trust_root import intel_trust_root
from cloister.errors import VerificationError

KEY = ec.generate_private_key(ec.SECP256R1())
LONG = timedelta(days=20 * 365)


def issued(
    issuer: Issuer,
    at: datetime,
    *,
    name: str = issuing.PCK_NAME,
    authority: bool = False,
    extension: bytes | None = None,
) -> Issuer:
    """Issues any certificate under any issuer, as an attacker with its key could."""
    builder = issuing._builder(
        issuing._name(name), KEY.public_key(), at=at, life=timedelta(days=30)
    )
    if authority:
        builder = issuing._authority(builder, path_length=0)
    else:
        builder = issuing._end_entity(builder)
    if extension is None:
        extension = issuing.encode_pck_extension(
            ppid=bytes(16), platform_instance_id=bytes(16)
        )
    if extension:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(
                x509.ObjectIdentifier(SGX_EXTENSION_OID), extension
            ),
            critical=False,
        )
    certificate = issuing._issue(builder, issuer, "https://simulated.invalid/x.crl")
    return Issuer(certificate=certificate, key=KEY)


def refused(
    root: SimulatedRoot, at: datetime, leaf: Issuer, ca: Issuer
) -> VerificationError:
    chain = leaf.pem + ca.pem + root.root.pem
    with pytest.raises(VerificationError) as refusal:
        verified_pck_chain(chain, root=root.trust_root, at=at)
    assert refusal.value.step == 2
    return refusal.value


def test_an_honest_chain_is_accepted_until_its_first_end(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.ca, at)
    chain = verified_pck_chain(
        leaf.pem + root.ca.pem + root.root.pem, root=root.trust_root, at=at
    )
    assert chain.not_after == at + timedelta(days=30)
    assert chain.leaf.public_key == KEY.public_key()
    assert chain.platform.ppid == bytes(16)


def test_another_deployments_root_is_refused_although_it_is_in_the_quote(
    root: SimulatedRoot, at: datetime, tmp_path: Path
) -> None:
    other = create_simulated_root(tmp_path / "root", at=at)
    other.issue_platform(tmp_path / "mallory", name="mallory", at=at)
    chain = (tmp_path / "mallory" / PCK_CHAIN_FILE).read_bytes()
    with pytest.raises(VerificationError) as refusal:
        verified_pck_chain(chain, root=root.trust_root, at=at)
    assert refusal.value.code == "root-untrusted"


def test_a_simulated_chain_is_refused_under_the_hardware_root(
    platform_directory: Path, at: datetime
) -> None:
    chain = (platform_directory / PCK_CHAIN_FILE).read_bytes()
    with pytest.raises(VerificationError) as refusal:
        verified_pck_chain(chain, root=intel_trust_root(), at=at)
    assert refusal.value.code == "root-untrusted"


def test_another_deployments_leaf_under_the_right_root_is_refused(
    root: SimulatedRoot, at: datetime, tmp_path: Path
) -> None:
    other = create_simulated_root(tmp_path / "root", at=at)
    leaf = issued(other.ca, at)
    # Same names in both deployments: only the signature tells them apart.
    assert refused(root, at, leaf, root.ca).code == "certificate-signature"
    assert refused(root, at, leaf, other.ca).code == "certificate-signature"


def test_a_pck_issued_by_the_root_itself_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.root, at)
    assert refused(root, at, leaf, root.ca).code == "certificate-issuer"
    assert refused(root, at, leaf, root.root).code == "certificate-name"


def test_a_pck_issued_by_another_pck_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    stolen = issued(root.ca, at)
    leaf = issued(stolen, at)
    assert refused(root, at, leaf, stolen).code == "certificate-name"
    named_ca = issued(root.root, at, name="SIMULATED Intel SGX CA")
    assert refused(root, at, issued(named_ca, at), named_ca).code == "certificate-role"


@pytest.mark.parametrize("name", [issuing.SIGNING_NAME, "x", issuing.CA_NAME])
def test_a_leaf_of_another_name_is_refused(
    root: SimulatedRoot, at: datetime, name: str
) -> None:
    leaf = issued(root.ca, at, name=name)
    assert refused(root, at, leaf, root.ca).code == "certificate-name"


def test_the_collateral_signer_cannot_be_a_platform(
    root: SimulatedRoot, at: datetime
) -> None:
    assert refused(root, at, root.signing, root.ca).code == "certificate-name"


def test_a_leaf_that_is_an_authority_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.ca, at, authority=True)
    assert refused(root, at, leaf, root.ca).code == "certificate-role"


def test_a_leaf_without_a_platform_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.ca, at, extension=b"")
    assert refused(root, at, leaf, root.ca).code == "pck-extension"


def test_a_leaf_with_a_damaged_platform_is_refused(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.ca, at, extension=b"\x30\x03\x01")
    assert refused(root, at, leaf, root.ca).code == "pck-extension"


def test_a_chain_out_of_its_time_is_refused(root: SimulatedRoot, at: datetime) -> None:
    leaf = issued(root.ca, at)
    early, late = at - timedelta(seconds=1), at + timedelta(days=30, seconds=1)
    assert refused(root, early, leaf, root.ca).code == "certificate-not-yet-valid"
    assert refused(root, late, leaf, root.ca).code == "certificate-expired"


def test_a_leaf_that_outlives_its_authority_ends_with_it(
    root: SimulatedRoot, at: datetime
) -> None:
    late = (at + LONG).astimezone(UTC)
    leaf = issued(root.ca, late)
    assert (
        refused(root, late + timedelta(days=1), leaf, root.ca).code
        == "certificate-expired"
    )


def test_the_order_leaf_ca_root_is_the_only_one(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.ca, at)
    for chain in (
        root.ca.pem + leaf.pem + root.root.pem,
        root.root.pem + root.ca.pem + leaf.pem,
        leaf.pem + root.root.pem + root.ca.pem,
    ):
        with pytest.raises(VerificationError):
            verified_pck_chain(chain, root=root.trust_root, at=at)


def test_the_root_in_the_quote_must_be_equal_to_the_last_bit(
    root: SimulatedRoot, at: datetime
) -> None:
    leaf = issued(root.ca, at)
    der = bytearray(root.root.certificate.public_bytes(Encoding.DER))
    # The last bit of the signature: names and key are those of the true root.
    der[-1] ^= 1
    forged = x509.load_der_x509_certificate(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(VerificationError) as refusal:
        verified_pck_chain(leaf.pem + root.ca.pem + forged, root=root.trust_root, at=at)
    assert refusal.value.code == "root-untrusted"
