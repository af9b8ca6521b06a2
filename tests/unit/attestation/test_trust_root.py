from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.trust_root import (
    INTEL_ROOT_SHA256,
    TrustRoot,
    intel_trust_root,
    preproduction_trust_root,
    simulated_trust_root,
)
from cloister.errors import ConfigError


def test_the_built_in_root_is_intels_and_is_called_hardware() -> None:
    root = intel_trust_root()
    assert hashlib.sha256(root.der).hexdigest() == INTEL_ROOT_SHA256
    assert root.name == root.kind == "hardware"


def test_a_development_root_is_named_by_its_hash(root: SimulatedRoot) -> None:
    trust_root = root.trust_root
    digest = hashlib.sha256(trust_root.der).hexdigest()
    assert trust_root.kind == "simulated"
    assert trust_root.name == f"simulated:sha256:{digest}"


def test_a_preproduction_root_is_named_by_its_hash(root: SimulatedRoot) -> None:
    trust_root = preproduction_trust_root(root.trust_root.der)
    assert trust_root.kind == "preproduction"
    assert trust_root.name == f"preproduction:sha256:{trust_root.sha256}"


@pytest.mark.parametrize("other", [simulated_trust_root, preproduction_trust_root])
def test_intels_root_is_never_anything_but_hardware(
    other: Callable[[bytes], TrustRoot],
) -> None:
    with pytest.raises(ConfigError) as refusal:
        other(intel_trust_root().der)
    assert refusal.value.code == "root-kind"


def test_a_development_root_is_never_hardware(root: SimulatedRoot) -> None:
    with pytest.raises(ConfigError) as refusal:
        TrustRoot(kind="hardware", der=root.trust_root.der)
    assert refusal.value.code == "root-kind"


@pytest.mark.parametrize("der", [b"", b"\x30\x00", bytes(9_000)])
def test_bytes_that_are_no_certificate_are_no_root(der: bytes) -> None:
    with pytest.raises(ConfigError) as refusal:
        simulated_trust_root(der)
    assert refusal.value.code == "root-malformed"


def test_a_certificate_that_is_not_self_signed_is_no_root(root: SimulatedRoot) -> None:
    for issuer in (root.ca, root.signing):
        with pytest.raises(ConfigError) as refusal:
            simulated_trust_root(issuer.certificate.public_bytes(Encoding.DER))
        assert refusal.value.code == "root-malformed"
