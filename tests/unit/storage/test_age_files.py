from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.storage.age_files import check_new, open_bytes, seal_bytes, unseal_bytes
from cloister.storage.model_vault import new_identity

IDENTITY, RECIPIENT = new_identity()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "file.age"


@given(content=st.binary(max_size=2000))
def test_what_was_sealed_is_opened_with_the_digest_of_the_file(
    scratch: Path, content: bytes
) -> None:
    sealed = seal_bytes(content, recipients=(RECIPIENT,), path=scratch)
    opened = open_bytes(scratch, identity=IDENTITY)
    assert opened.content == content
    on_disk = scratch.read_bytes()
    assert opened.sha256 == sealed.sha256 == hashlib.sha256(on_disk).hexdigest()
    assert (sealed.size_bytes, sealed.recipients) == (len(on_disk), (RECIPIENT,))


def test_a_recipient_may_have_the_clear_in_a_new_file(tmp_path: Path) -> None:
    path, output = tmp_path / "graph.pt2.age", tmp_path / "graph.pt2"
    seal_bytes(b"any content", recipients=(RECIPIENT,), path=path)
    assert unseal_bytes(path, identity=IDENTITY, output=output) == 11
    assert output.read_bytes() == b"any content"
    assert output.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError) as caught:
        unseal_bytes(path, identity=IDENTITY, output=output)
    assert caught.value.code == "output-exists"


@pytest.mark.parametrize("cut", [1, 40])
def test_what_does_not_open_leaves_no_clear_file(tmp_path: Path, cut: int) -> None:
    path, output = tmp_path / "file.age", tmp_path / "file"
    seal_bytes(bytes(100), recipients=(RECIPIENT,), path=path)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StorageError) as caught:
        unseal_bytes(path, identity=IDENTITY, output=output)
    assert caught.value.code == "model-damaged"
    with pytest.raises(StorageError):
        unseal_bytes(path, identity=new_identity()[0], output=output)
    assert not output.exists()


def test_an_output_is_a_new_file_in_a_directory_that_exists(tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert check_new(new) == new
    codes = []
    for path in (tmp_path, tmp_path / "absent" / "new"):
        with pytest.raises(CloisterError) as caught:
            check_new(path)
        codes.append(caught.value.code)
    assert codes == ["output-exists", "output-directory"]


def test_without_recipients_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        seal_bytes(b"", recipients=(), path=tmp_path / "file.age")
    assert list(tmp_path.iterdir()) == []
