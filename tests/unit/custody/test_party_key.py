from __future__ import annotations

import contextlib
import os
import resource
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x448
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from cloister.custody.party_key import MAX_FILE_BYTES, new_party_key, read_party_key
from cloister.errors import ConfigError, StorageError
from cloister.plan.keys import format_party_key, parse_party_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "party-key.pem"


def pem(
    key: ec.EllipticCurvePrivateKey | x448.X448PrivateKey | ed25519.Ed25519PrivateKey,
    password: bytes | None = None,
) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


GOOD = pem(ed25519.Ed25519PrivateKey.generate())


def write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError, match=str(path)) as caught:
        read_party_key(path)
    return caught.value


def test_a_new_key_reads_as_the_plan_writes_it(path: Path) -> None:
    public = new_party_key(path)
    key = read_party_key(path)
    assert format_party_key(key) == public
    parse_party_key(public).verify(key.sign(b"a consent"), b"a consent")


def test_no_two_keys_are_the_same(tmp_path: Path) -> None:
    publics = {new_party_key(tmp_path / f"{n}.pem") for n in range(5)}
    assert len(publics) == 5


def test_a_new_key_is_its_owners_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        new_party_key(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_is_never_written_over(path: Path) -> None:
    new_party_key(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=str(path)) as caught:
        new_party_key(path)
    assert caught.value.code == "party-key-exists"
    assert path.read_bytes() == before


def test_a_link_is_not_followed_to_write_a_key_elsewhere(
    path: Path, tmp_path: Path
) -> None:
    path.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(ConfigError) as caught:
        new_party_key(path)
    assert caught.value.code == "party-key-exists"
    assert not (tmp_path / "elsewhere.pem").exists()


def test_a_key_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "party-key.pem"
    with pytest.raises(StorageError, match=str(path)) as caught:
        new_party_key(path)
    assert caught.value.code == "party-key-unwritable"


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A disk that fills up, as the kernel knows one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_no_half_of_a_key_is_left_on_a_full_disk(path: Path) -> None:
    with files_of_at_most(50), pytest.raises(StorageError) as caught:
        new_party_key(path)
    assert caught.value.code == "party-key-unwritable"
    assert not path.exists()
    new_party_key(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o601, 0o602])
def test_a_key_others_may_reach_is_refused(path: Path, mode: int) -> None:
    new_party_key(path)
    path.chmod(mode)
    error = refusal(path)
    assert error.code == "party-key-exposed"
    assert error.got == f"{mode:04o}"
    assert f"chmod 600 {path}" in error.remedy
    path.chmod(0o600)
    read_party_key(path)


def test_a_key_its_owner_may_only_read_is_good(path: Path) -> None:
    new_party_key(path)
    path.chmod(0o400)
    read_party_key(path)


def test_a_link_to_an_exposed_key_does_not_hide_that(
    path: Path, tmp_path: Path
) -> None:
    new_party_key(path)
    path.chmod(0o644)
    link = tmp_path / "link.pem"
    link.symlink_to(path)
    assert refusal(link).code == "party-key-exposed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no PEM",
        b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n",
        GOOD[:-30],
        pem(ec.generate_private_key(ec.SECP256R1())),
        pem(x448.X448PrivateKey.generate()),
        pem(ed25519.Ed25519PrivateKey.generate(), b"password"),
        GOOD + b"#" * MAX_FILE_BYTES,
    ],
)
def test_a_key_that_cannot_be_used_is_named(path: Path, content: bytes) -> None:
    write_private(path, content)
    assert refusal(path).code == "party-key-unusable"


def test_a_missing_key_is_named(path: Path) -> None:
    error = refusal(path)
    assert error.code == "party-key-unusable"
    assert error.got == "No such file or directory"


def test_a_directory_is_no_key(path: Path) -> None:
    path.mkdir(mode=0o700)
    assert refusal(path).code == "party-key-unusable"


def test_a_pipe_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path, 0o600)
    assert refusal(path).code == "party-key-unusable"


@given(st.one_of(st.binary(max_size=300), st.integers(0, len(GOOD) - 1)))
def test_no_bytes_are_an_internal_error(
    tmp_path_factory: pytest.TempPathFactory, damage: bytes | int
) -> None:
    path = tmp_path_factory.mktemp("keys") / "party-key.pem"
    write_private(path, damage if isinstance(damage, bytes) else GOOD[:damage])
    # The last line's end is no part of PEM.
    if damage == len(GOOD) - 1:
        read_party_key(path)
    else:
        assert refusal(path).code == "party-key-unusable"


def test_no_error_quotes_the_key(path: Path) -> None:
    secret = GOOD.decode().splitlines()[1]
    for content in (GOOD[:-30], GOOD + b"#" * MAX_FILE_BYTES):
        path.unlink(missing_ok=True)
        write_private(path, content)
        assert secret[:16] not in str(refusal(path))
    path.chmod(0o644)
    assert secret[:16] not in str(refusal(path))
