from __future__ import annotations

import stat
from datetime import datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
    load_simulated_root,
)
from cloister.errors import ConfigError, StorageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def fresh(tmp_path: Path, at: datetime) -> SimulatedRoot:
    return create_simulated_root(tmp_path / "root", at=at)


def test_a_root_comes_back_as_it_was_made(fresh: SimulatedRoot) -> None:
    loaded = load_simulated_root(fresh.directory)
    assert loaded.trust_root == fresh.trust_root
    for made, read in (
        (fresh.root, loaded.root),
        (fresh.ca, loaded.ca),
        (fresh.signing, loaded.signing),
    ):
        assert read.certificate == made.certificate
        assert read.key.private_numbers() == made.key.private_numbers()


def test_two_deployments_never_share_a_root(
    fresh: SimulatedRoot, root: SimulatedRoot
) -> None:
    assert fresh.trust_root.sha256 != root.trust_root.sha256


def test_every_name_says_that_it_is_simulated(fresh: SimulatedRoot) -> None:
    for issuer in (fresh.root, fresh.ca, fresh.signing):
        subject = issuer.certificate.subject.rfc4514_string()
        assert "SIMULATED" in subject
        assert "Dev only" in subject


def test_only_the_owner_can_read_the_keys(fresh: SimulatedRoot, at: datetime) -> None:
    platform = fresh.directory.parent / "alice"
    fresh.issue_platform(platform, name="alice", at=at)
    for directory in (fresh.directory, platform):
        assert mode(directory) == 0o700
        assert {mode(path) for path in directory.iterdir()} == {0o600}


def test_a_directory_that_is_there_already_is_narrowed(
    tmp_path: Path, at: datetime
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    create_simulated_root(tmp_path / "open", at=at)
    assert mode(tmp_path / "open") == 0o700


def test_the_roots_keys_never_enter_a_platforms_directory(
    fresh: SimulatedRoot, at: datetime
) -> None:
    platform = fresh.directory.parent / "alice"
    fresh.issue_platform(platform, name="alice", at=at)
    held = b"".join(path.read_bytes() for path in platform.iterdir())
    for issuer in (fresh.root, fresh.ca, fresh.signing):
        pem = issuer.key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        secret = issuer.key.private_numbers().private_value.to_bytes(32, "big")
        assert pem.splitlines()[1] not in held
        assert secret not in held
        assert secret.hex().encode() not in held


def test_nothing_secret_is_in_a_repr(fresh: SimulatedRoot) -> None:
    assert repr(fresh) == f"SimulatedRoot(directory={fresh.directory!r})"
    assert "PrivateKey" not in repr(fresh.root)


def test_two_platforms_have_nothing_in_common(
    fresh: SimulatedRoot, at: datetime
) -> None:
    for name in ("alice", "bob"):
        fresh.issue_platform(fresh.directory.parent / name, name=name, at=at)
    for path in (fresh.directory.parent / "alice").iterdir():
        assert path.read_bytes() != (path.parents[1] / "bob" / path.name).read_bytes()


def test_a_root_is_never_made_over_another(fresh: SimulatedRoot, at: datetime) -> None:
    with pytest.raises(ConfigError) as refusal:
        create_simulated_root(fresh.directory, at=at)
    assert refusal.value.code == "simulated-exists"
    assert load_simulated_root(fresh.directory).trust_root == fresh.trust_root


def test_a_platform_is_never_made_over_another(
    fresh: SimulatedRoot, at: datetime
) -> None:
    platform = fresh.directory.parent / "alice"
    fresh.issue_platform(platform, name="alice", at=at)
    before = {path: path.read_bytes() for path in platform.iterdir()}
    with pytest.raises(ConfigError) as refusal:
        fresh.issue_platform(platform, name="bob", at=at)
    assert refusal.value.code == "simulated-exists"
    assert {path: path.read_bytes() for path in platform.iterdir()} == before


def test_a_platform_in_the_roots_own_directory_is_refused(
    fresh: SimulatedRoot, at: datetime
) -> None:
    with pytest.raises(ConfigError) as refusal:
        fresh.issue_platform(fresh.directory / ".." / "root", name="alice", at=at)
    assert refusal.value.code == "simulated-root-exposed"


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65])
def test_an_unusable_name_is_refused(
    fresh: SimulatedRoot, at: datetime, name: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        fresh.issue_platform(fresh.directory.parent / "alice", name=name, at=at)
    assert refusal.value.code == "simulated-name"
    assert not (fresh.directory.parent / "alice").exists()


def test_a_time_without_zone_is_a_bug_and_no_refusal(
    tmp_path: Path, at: datetime
) -> None:
    with pytest.raises(ValueError, match="aware"):
        create_simulated_root(tmp_path, at=at.replace(tzinfo=None))


def test_a_place_that_cannot_be_written_is_refused(
    tmp_path: Path, at: datetime
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as refusal:
        create_simulated_root(tmp_path / "file" / "root", at=at)
    assert refusal.value.code == "simulated-unwritable"


NAMES = ["root-ca", "platform-ca", "tcb-signing"]


@pytest.mark.parametrize("name", [f"{n}.{e}" for n in NAMES for e in ("key", "pem")])
def test_a_missing_file_is_refused_with_what_to_do(
    fresh: SimulatedRoot, name: str
) -> None:
    (fresh.directory / name).unlink()
    with pytest.raises(ConfigError) as refusal:
        load_simulated_root(fresh.directory)
    assert refusal.value.code == "simulated-missing"
    assert "cloister init" in refusal.value.remedy


@pytest.mark.parametrize("name", [f"{n}.{e}" for n in NAMES for e in ("key", "pem")])
@pytest.mark.parametrize("content", [b"", b"garbage\n", bytes(70_000)])
def test_a_damaged_file_is_refused(
    fresh: SimulatedRoot, name: str, content: bytes
) -> None:
    (fresh.directory / name).write_bytes(content)
    with pytest.raises(StorageError) as refusal:
        load_simulated_root(fresh.directory)
    assert refusal.value.code == "simulated-damaged"


def test_a_key_of_another_certificate_is_refused(fresh: SimulatedRoot) -> None:
    (fresh.directory / "root-ca.key").write_bytes(
        (fresh.directory / "platform-ca.key").read_bytes()
    )
    with pytest.raises(StorageError):
        load_simulated_root(fresh.directory)


def test_a_key_of_another_kind_is_refused(fresh: SimulatedRoot) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    (fresh.directory / "root-ca.key").write_bytes(
        other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    with pytest.raises(StorageError):
        load_simulated_root(fresh.directory)


def test_a_key_that_others_may_read_is_refused(fresh: SimulatedRoot) -> None:
    (fresh.directory / "root-ca.key").chmod(0o640)
    with pytest.raises(ConfigError) as refusal:
        load_simulated_root(fresh.directory)
    assert refusal.value.code == "simulated-permissions"
    assert "chmod 600" in refusal.value.remedy
