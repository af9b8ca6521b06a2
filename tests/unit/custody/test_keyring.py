from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyrage  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.keyrings import new_identity_file
from tests.support.quick_passphrase import quickly_sealed

from cloister.custody.keyring import (
    MAX_FILE_BYTES,
    NONCE_BYTES,
    IdentityFile,
    Keyring,
    Passphrase,
    create_keyring,
    open_keyring,
    save_keyring,
)
from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.storage.age import read_identity, recipient_of
from cloister.storage.keys import Secret

PARTY = "alice"
KEY = Secret(bytes(range(32)))
ID = "sha256:" + 64 * "0"


@pytest.fixture
def lock(tmp_path: Path) -> IdentityFile:
    return IdentityFile(path=new_identity_file(tmp_path / "identity.txt"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keyring.age"


def refusal(act: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        act()
    return caught.value


def open_code(path: Path, lock: IdentityFile, *, party: str = PARTY) -> str:
    return refusal(lambda: open_keyring(path, party=party, lock=lock)).code


def write_content(path: Path, lock: IdentityFile, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(lock.encrypt(content))


def test_a_keyring_opens_with_its_identity_and_is_its_owners_alone(
    path: Path, lock: IdentityFile
) -> None:
    made = create_keyring(path, party=PARTY, lock=lock)
    assert open_keyring(path, party=PARTY, lock=lock) == made
    assert set(made.keys) == {1}
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.keys[1].reveal() not in path.read_bytes()


# A passphrase costs a second or more each time: that is what it is for.
@pytest.mark.long
def test_a_keyring_opens_with_its_passphrase_and_with_no_other(
    path: Path, lock: IdentityFile
) -> None:
    right = Passphrase(text=Secret(b"correct horse battery"))
    wrong = Passphrase(text=Secret(b"correct horse batter"))
    made = create_keyring(path, party=PARTY, lock=right)
    assert open_keyring(path, party=PARTY, lock=right) == made
    error = refusal(lambda: open_keyring(path, party=PARTY, lock=wrong))
    assert isinstance(error, ConfigError)
    assert error.code == "keyring-locked"
    assert "horse" not in f"{error}{error.__cause__}{wrong!r}"
    assert open_code(path, lock) == "keyring-locked"


def test_a_keyring_that_asks_for_more_work_than_this_machine_does_is_not_damaged(
    path: Path,
) -> None:
    sealed = quickly_sealed(b"{}", "words")
    path.touch(mode=0o600)
    path.write_bytes(sealed.replace(b" 4\n", b" 40\n", 1))
    lock = Passphrase(text=Secret(b"words"))
    error = refusal(lambda: open_keyring(path, party=PARTY, lock=lock))
    assert isinstance(error, StorageError)
    assert error.code == "keyring-too-slow"
    assert "copy" not in error.remedy


def test_another_identity_does_not_open_it(path: Path, lock: IdentityFile) -> None:
    create_keyring(path, party=PARTY, lock=lock)
    new_identity_file(lock.path)
    error = refusal(lambda: open_keyring(path, party=PARTY, lock=lock))
    assert isinstance(error, ConfigError)
    assert error.code == "keyring-locked"


def test_nothing_is_made_over_a_keyring(path: Path, lock: IdentityFile) -> None:
    create_keyring(path, party=PARTY, lock=lock)
    before = path.read_bytes()
    error = refusal(lambda: create_keyring(path, party=PARTY, lock=lock))
    assert error.code == "keyring-exists"
    assert path.read_bytes() == before


def test_what_is_not_there_is_told(path: Path, lock: IdentityFile) -> None:
    error = refusal(lambda: open_keyring(path, party=PARTY, lock=lock))
    assert isinstance(error, StorageError)
    assert error.code == "keyring-missing"


def test_another_partys_keyring_is_refused(path: Path, lock: IdentityFile) -> None:
    create_keyring(path, party="bob", lock=lock)
    assert open_code(path, lock) == "keyring-foreign"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_keyring_or_identity_that_others_can_reach_is_refused(
    path: Path, lock: IdentityFile, mode: int
) -> None:
    create_keyring(path, party=PARTY, lock=lock)
    path.chmod(mode)
    assert open_code(path, lock) == "keyring-exposed"
    path.chmod(0o600)
    lock.path.chmod(mode)
    assert open_code(path, lock) == "keyring-exposed"


def test_a_pipe_is_not_waited_for(path: Path, lock: IdentityFile) -> None:
    os.mkfifo(path, mode=0o600)
    assert open_code(path, lock) == "keyring-unusable"


def test_a_file_larger_than_a_keyring_is_not_read(
    path: Path, lock: IdentityFile
) -> None:
    create_keyring(path, party=PARTY, lock=lock)
    os.truncate(path, MAX_FILE_BYTES + 1)
    assert open_code(path, lock) == "keyring-damaged"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 10_000,
        b'{"format":2,"party":"alice","keys":{"1":"' + 43 * b"A" + b'="}}',
        b'{"format":1,"party":"alice","keys":{}}',
        b'{"format":1,"party":"alice","keys":{"0":"' + 43 * b"A" + b'="}}',
        b'{"format":1,"party":"alice","keys":{"1":"AAAA"}}',
        b'{"format":1,"party":"alice","keys":{"1":"' + 43 * b"A" + b'="},"more":1}',
    ],
)
def test_what_is_sealed_but_no_keyring_is_refused(
    path: Path, lock: IdentityFile, content: bytes
) -> None:
    write_content(path, lock, content)
    error = refusal(lambda: open_keyring(path, party=PARTY, lock=lock))
    assert error.code == "keyring-damaged"
    assert error.__cause__ is None


def test_the_form_of_a_keyring_is_what_the_specification_says(
    path: Path, lock: IdentityFile
) -> None:
    made = create_keyring(path, party=PARTY, lock=lock)
    identity = pyrage.x25519.Identity.from_str(read_identity(lock.path))
    content = msgspec.json.decode(pyrage.decrypt(path.read_bytes(), [identity]))
    assert list(content) == ["format", "party", "keys"]
    assert (content["format"], content["party"]) == (1, PARTY)
    assert list(content["keys"]) == ["1"]
    assert msgspec.convert(content["keys"]["1"], bytes) == made.keys[1].reveal()


def test_a_keyring_with_any_bit_flipped_or_cut_off_anywhere_never_opens(
    path: Path, lock: IdentityFile
) -> None:
    create_keyring(path, party=PARTY, lock=lock)
    whole = path.read_bytes()
    changed = [whole[:length] for length in range(len(whole))]
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(flipped))
    for content in changed:
        path.write_bytes(content)
        assert open_code(path, lock) in {"keyring-damaged", "keyring-locked"}


def test_a_keyring_of_the_next_generation_keeps_the_one_in_use(
    path: Path, lock: IdentityFile
) -> None:
    first = create_keyring(path, party=PARTY, lock=lock)
    both = first.and_next(1)
    assert set(both.keys) == {1, 2}
    assert both.keys[1] == first.keys[1]
    assert both.keys[2] != first.keys[1]
    save_keyring(path, both, lock=lock)
    assert open_keyring(path, party=PARTY, lock=lock) == both
    assert both.only(2).keys == {2: both.keys[2]}


def test_a_disk_that_cannot_be_written_is_told(
    tmp_path: Path, lock: IdentityFile
) -> None:
    path = tmp_path / "nowhere" / "keyring.age"
    error = refusal(lambda: create_keyring(path, party=PARTY, lock=lock))
    assert error.code == "keyring-unusable"


# Sealed keys


def ring(party: str = PARTY, *keys: int) -> Keyring:
    return Keyring(
        party=party, keys={it: Secret(bytes([it]) * 32) for it in keys or (1, 2)}
    )


def seal(keyring: Keyring) -> bytes:
    return keyring.seal(KEY, kind="data", key_id=ID, generation=1)


def test_a_sealed_key_opens_in_its_place() -> None:
    sealed = seal(ring())
    assert len(sealed) == NONCE_BYTES + 32 + 16
    assert KEY.reveal() not in sealed
    assert ring().unseal(sealed, kind="data", key_id=ID, generation=1) == KEY
    assert seal(ring())[:NONCE_BYTES] != sealed[:NONCE_BYTES]


@pytest.mark.parametrize(
    ("keyring", "kind", "key_id", "generation"),
    [
        (ring("bob"), "data", ID, 1),
        (ring(), "state-share", ID, 1),
        (ring(), "data", ID[:-1] + "1", 1),
        (ring(), "data", ID, 2),
    ],
)
def test_a_sealed_key_opens_nowhere_else(
    keyring: Keyring, kind: str, key_id: str, generation: int
) -> None:
    sealed = seal(ring())
    error = refusal(
        lambda: keyring.unseal(
            sealed,
            kind=kind,  # type: ignore[arg-type]
            key_id=key_id,
            generation=generation,
        )
    )
    assert error.code == "key-damaged"


@given(st.integers(0, 8 * 60 - 1) | st.integers(-59, -1))
def test_a_sealed_key_that_was_altered_or_cut_never_opens(change: int) -> None:
    sealed = bytearray(seal(ring()))
    if change >= 0:
        sealed[change // 8] ^= 1 << change % 8
    else:
        del sealed[change:]
    error = refusal(
        lambda: ring().unseal(bytes(sealed), kind="data", key_id=ID, generation=1)
    )
    assert error.code == "key-damaged"


def test_no_text_of_a_keyring_shows_a_key(path: Path, lock: IdentityFile) -> None:
    keyring = create_keyring(path, party=PARTY, lock=lock)
    secret = keyring.keys[1].reveal()
    identity = read_identity(lock.path)
    for shown in (repr(keyring), str(keyring), repr(lock), repr(keyring.keys)):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
        assert identity not in shown
    assert recipient_of(identity)
