from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.keyrings import new_identity_file

from cloister.custody.key_material import check_label, make_key, name_of, read_key
from cloister.errors import ConfigError
from cloister.storage.age import read_identity, recipient_of
from cloister.storage.keys import KeyKind, Secret, key_id

RAW = bytes(range(100, 132))


def code_of_file(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_key(path, kind="data")
    assert RAW.hex() not in str(caught.value)
    return caught.value.code


def test_a_key_is_made_of_32_random_bytes_and_named_by_its_hash() -> None:
    first, second = make_key("data"), make_key("state-share")
    assert first != second
    assert name_of("data", first) == key_id("data", first)
    assert name_of("data", first) != name_of("state-share", first)


def test_a_vault_key_is_an_identity_named_by_its_recipient() -> None:
    secret = make_key("vault")
    assert name_of("vault", secret) == recipient_of(secret.reveal().decode())


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_key_is_read_from_bytes_or_hex(tmp_path: Path, ending: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(RAW.hex().encode() + ending)
    assert read_key(path, kind="data") == Secret(RAW)
    path.write_bytes(RAW.hex().upper().encode() + ending)
    assert read_key(path, kind="data") == Secret(RAW)
    path.write_bytes(RAW)
    assert read_key(path, kind="state-share") == Secret(RAW)


@pytest.mark.parametrize(
    "content",
    [b"", RAW[:-1], RAW + b"\n", RAW.hex().encode()[:-1], 2 * RAW, 1000 * b"0"],
)
def test_what_is_no_key_is_refused_and_not_shown(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    assert code_of_file(path) == "key-invalid"


def test_a_key_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert code_of_file(tmp_path / "key") == "key-unreadable"
    assert code_of_file(tmp_path) == "key-unreadable"


def test_a_vault_key_is_read_as_age_writes_it(tmp_path: Path) -> None:
    path = new_identity_file(tmp_path / "identity.txt")
    secret = read_key(path, kind="vault")
    assert secret.reveal().decode() == read_identity(path)
    path.write_bytes(RAW)
    with pytest.raises(ConfigError) as caught:
        read_key(path, kind="vault")
    assert caught.value.code == "identity-invalid"


@given(st.binary(max_size=80).filter(lambda it: len(it) != 32))
def test_no_other_bytes_are_a_key(content: bytes) -> None:
    cases: tuple[tuple[KeyKind, str], ...] = (
        ("data", "key-invalid"),
        ("vault", "identity-invalid"),
    )
    for kind, code in cases:
        with pytest.raises(ConfigError) as caught:
            name_of(kind, Secret(content))
        assert caught.value.code == code


@pytest.mark.parametrize("label", ["", "A", "a b", "-a", "a\n", 65 * "a", "é"])
def test_a_label_is_a_plain_word(label: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_label(label)
    assert caught.value.code == "key-label-invalid"
    assert check_label("scans-2026.v1_b") == "scans-2026.v1_b"
