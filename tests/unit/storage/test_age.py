from __future__ import annotations

from pathlib import Path

import pytest

from cloister.errors import ConfigError
from cloister.storage.age import (
    check_recipients,
    new_identity,
    read_identity,
    recipient_of,
)

# age-keygen's own words around a key of ours.
FILE = "# created: 2026-11-20T12:00:00Z\n# public key: {recipient}\n\n{identity}\n"


def test_an_identity_file_is_read_past_its_comments(tmp_path: Path) -> None:
    identity, recipient = new_identity()
    path = tmp_path / "key.txt"
    path.write_text(FILE.format(identity=identity, recipient=recipient))
    assert read_identity(path) == identity


def test_a_missing_identity_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_identity(tmp_path / "absent")
    assert caught.value.code == "identity-missing"


def test_an_invalid_identity_file_is_refused_without_showing_it(tmp_path: Path) -> None:
    identity, recipient = new_identity()
    path = tmp_path / "key.txt"
    for content in (
        b"",
        b"# nothing\n",
        f"{identity}\n{identity}\n".encode(),
        recipient.encode(),
        identity[:-1].encode(),
        b"\xff\xfe",
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            read_identity(path)
        assert caught.value.code == "identity-invalid"
        assert identity[20:40] not in str(caught.value)


def test_good_recipients_pass() -> None:
    check_recipients([new_identity()[1], new_identity()[1]])


def test_bad_recipients_are_refused() -> None:
    recipient = new_identity()[1]
    for recipients in ([], [recipient, recipient], [recipient[:-1]], ["alice"]):
        with pytest.raises(ConfigError) as caught:
            check_recipients(recipients)
        assert caught.value.code == "recipient-invalid"


def test_an_identity_given_as_recipient_is_not_shown() -> None:
    identity = new_identity()[0]
    with pytest.raises(ConfigError) as caught:
        check_recipients([identity])
    assert identity[20:40] not in str(caught.value)


def test_an_identity_says_its_recipient() -> None:
    identity, recipient = new_identity()
    assert recipient_of(identity) == recipient


@pytest.mark.parametrize("damage", [slice(1, None), slice(0, -1), slice(0, 0)])
def test_a_damaged_identity_is_not_shown(damage: slice) -> None:
    identity = new_identity()[0][damage]
    with pytest.raises(ConfigError) as caught:
        recipient_of(identity)
    assert caught.value.code == "identity-invalid"
    assert identity[20:40] not in str(caught.value) or not identity
