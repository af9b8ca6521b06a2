from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.cli.passphrases import new_passphrase, read_passphrase
from cloister.errors import ConfigError

WORDS = "six words chosen by dice and näher"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    return path


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_passphrase(path)
    assert caught.value.code == "passphrase-unusable"
    return caught.value


@pytest.mark.parametrize("ending", ["", "\n"])
def test_a_passphrase_is_one_line(path: Path, ending: str) -> None:
    path.write_text(WORDS + ending)
    passphrase = read_passphrase(path)
    assert passphrase.text.reveal().decode() == WORDS
    assert "words" not in repr(passphrase)


@pytest.mark.parametrize("content", ["", "\n", "a\nb", "a\n\n", "a" * 5000])
def test_anything_else_is_none(path: Path, content: str) -> None:
    path.write_text(content)
    refusal(path)


def test_bytes_that_are_no_text_are_not_shown(path: Path) -> None:
    path.write_bytes(b"canary\xff")
    error = refusal(path)
    assert error.__cause__ is None
    assert "canary" not in str(error)


def test_a_passphrase_that_others_can_read_is_refused(path: Path) -> None:
    path.write_text(WORDS)
    path.chmod(0o640)
    assert "0640" in refusal(path).got


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", mode=0o600)
    refusal(tmp_path / "pipe")
    refusal(tmp_path / "nothing")


def test_a_new_passphrase_needs_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(ConfigError) as caught:
            new_passphrase()
    assert caught.value.code == "nobody-to-ask"
