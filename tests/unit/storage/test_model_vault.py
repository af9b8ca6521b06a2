from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyrage  # type: ignore[import-untyped]
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloister.errors import ConfigError, StorageError
from cloister.storage.model_vault import (
    SealedModel,
    new_identity,
    open_model,
    seal_model,
    unseal_to_file,
)

ARRAYS: dict[str, NDArray[np.generic]] = {
    "dense.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "norm.num_batches_tracked": np.zeros((), np.int64),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}
METADATA = {"run": "digits 2026-11-20-a", "rounds": "200"}
IDENTITY, RECIPIENT = new_identity()
REFUSALS = {
    "model-not-age",
    "model-not-for-identity",
    "model-damaged",
    "model-not-safetensors",
}


def sealed(path: Path, *recipients: str) -> SealedModel:
    return seal_model(
        ARRAYS, metadata=METADATA, recipients=recipients or (RECIPIENT,), path=path
    )


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("vault") / "model.age"
    sealed(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "model.age"


def refusal(path: Path, content: bytes, identity: str = IDENTITY) -> str:
    path.write_bytes(content)
    with pytest.raises(StorageError) as caught:
        open_model(path, identity=identity)
    return caught.value.code


def test_a_sealed_model_opens_to_the_same_arrays_and_metadata(tmp_path: Path) -> None:
    model = sealed(tmp_path / "model.age")
    opened = open_model(model.path, identity=IDENTITY)
    assert opened.metadata == METADATA
    assert opened.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert opened.arrays[name].dtype == array.dtype
        assert np.array_equal(opened.arrays[name], array)


def test_one_model_opens_to_the_same_bytes_each_time(tmp_path: Path) -> None:
    # In as many orders the library may write them.
    metadata = {f"metric.{number}": "0.5" for number in range(8)} | {"run": "größer\n"}
    opened = set()
    for number in range(3):
        path, output = tmp_path / f"{number}.age", tmp_path / f"{number}.safetensors"
        seal_model(ARRAYS, metadata=metadata, recipients=[RECIPIENT], path=path)
        assert unseal_to_file(path, identity=IDENTITY, output=output).metadata == (
            metadata
        )
        opened.add(output.read_bytes())
    assert len(opened) == 1


def test_the_receipt_describes_the_file(tmp_path: Path) -> None:
    model = sealed(tmp_path / "model.age")
    content = model.path.read_bytes()
    assert model.sha256 == hashlib.sha256(content).hexdigest()
    assert model.size_bytes == len(content)
    assert model.recipients == (RECIPIENT,)
    assert model.path.stat().st_mode & 0o777 == 0o600


def test_each_recipient_alone_opens_it(tmp_path: Path) -> None:
    other, recipient = new_identity()
    path = sealed(tmp_path / "model.age", RECIPIENT, recipient).path
    for identity in (IDENTITY, other):
        assert open_model(path, identity=identity).metadata == METADATA


def test_the_age_format_and_safetensors_are_all_there_is(content: bytes) -> None:
    key = pyrage.x25519.Identity.from_str(IDENTITY)
    arrays = safetensors.numpy.load(pyrage.decrypt(content, [key]))
    assert np.array_equal(arrays["dense.weight"], ARRAYS["dense.weight"])


def test_nothing_readable_reaches_the_disk(content: bytes) -> None:
    assert b"dense" not in content
    assert b"digits" not in content
    assert ARRAYS["dense.weight"].tobytes() not in content


def test_a_stranger_cannot_open_it(scratch: Path, content: bytes) -> None:
    assert refusal(scratch, content, new_identity()[0]) == "model-not-for-identity"


def test_a_file_that_is_not_age_is_refused(scratch: Path) -> None:
    assert refusal(scratch, b"") == "model-not-age"
    assert refusal(scratch, safetensors.numpy.save(dict(ARRAYS))) == "model-not-age"


@pytest.mark.parametrize("inner", [b"", b"hello", b"\xff" * 64])
def test_sealed_bytes_that_are_no_model_are_refused(
    scratch: Path, inner: bytes
) -> None:
    recipient = pyrage.x25519.Recipient.from_str(RECIPIENT)
    content = pyrage.encrypt(inner, [recipient])
    assert refusal(scratch, content) == "model-not-safetensors"


@given(data=st.data())
def test_any_flipped_bit_is_refused(
    scratch: Path, content: bytes, data: st.DataObject
) -> None:
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    assert refusal(scratch, bytes(damaged)) in REFUSALS


@given(data=st.data())
def test_any_truncation_is_refused(
    scratch: Path, content: bytes, data: st.DataObject
) -> None:
    length = data.draw(st.integers(0, len(content) - 1))
    assert refusal(scratch, content[:length]) in REFUSALS


def test_damage_to_the_body_is_called_damage(scratch: Path, content: bytes) -> None:
    assert refusal(scratch, content[:-1]) == "model-damaged"
    assert refusal(scratch, content[:-1] + bytes([content[-1] ^ 1])) == "model-damaged"


def test_a_bad_recipient_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        sealed(tmp_path / "model.age", "alice")
    assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        sealed(tmp_path / "absent" / "model.age")
    assert caught.value.code == "model-unwritable"


def test_a_missing_model_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_model(tmp_path / "model.age", identity=IDENTITY)
    assert caught.value.code == "model-missing"


def test_a_malformed_identity_is_not_shown(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        open_model(scratch, identity=IDENTITY[:-1])
    assert caught.value.code == "identity-invalid"
    assert IDENTITY[20:40] not in str(caught.value)


def test_an_owner_may_have_the_plain_file(tmp_path: Path) -> None:
    path, output = sealed(tmp_path / "model.age").path, tmp_path / "model.safetensors"
    opened = unseal_to_file(path, identity=IDENTITY, output=output)
    plain = safetensors.numpy.load(output.read_bytes())
    assert plain.keys() == opened.arrays.keys()
    assert output.stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_not_replaced_by_the_plain_one(tmp_path: Path) -> None:
    path = sealed(tmp_path / "model.age").path
    with pytest.raises(ConfigError) as caught:
        unseal_to_file(path, identity=IDENTITY, output=path)
    assert caught.value.code == "output-exists"


def test_a_damaged_model_leaves_no_plain_file(tmp_path: Path, content: bytes) -> None:
    path, output = tmp_path / "model.age", tmp_path / "model.safetensors"
    path.write_bytes(content[:-1])
    with pytest.raises(StorageError):
        unseal_to_file(path, identity=IDENTITY, output=output)
    assert not output.exists()


def test_the_representation_shows_no_values(tmp_path: Path) -> None:
    opened = open_model(sealed(tmp_path / "m").path, identity=IDENTITY)
    assert "array" not in repr(opened)
