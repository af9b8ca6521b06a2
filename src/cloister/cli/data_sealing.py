"""Seals a party's records with what its custodian keeps: data key and party key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.cli.custodians import open_keys, open_register
from cloister.cli.places import CustodianPlace
from cloister.custody.party_key import read_party_key
from cloister.custody.register_rows import KeyRow
from cloister.errors import ConfigError
from cloister.plan.keys import format_party_key
from cloister.storage.data_sealing import SealedData, seal_data
from cloister.storage.keys import Secret
from cloister.storage.record_stream import RecordStream


class PartySigner:
    """A party's key, as the owner of sealed data.

    Args:
        key: The key.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @property
    def owner(self) -> str:
        """The public half."""
        return format_party_key(self._key)

    def sign(self, message: bytes, /) -> bytes:
        """Returns a signature over `message`."""
        return self._key.sign(message)


def seal_for(
    place: CustodianPlace,
    stream: RecordStream,
    *,
    path: Path,
    key: str | None = None,
    on_records: Callable[[int], None] = lambda _: None,
) -> SealedData:
    """Seals records for the party of a custodian that runs where its key may be.

    Args:
        place: The custodian.
        stream: The records.
        path: Where the sealed data set goes; a new file.
        key: Name of the data key, or the owner's label for an active one; None for
            the only active one.
        on_records: Told how many records were sealed in all, after each chunk.

    Raises:
        ConfigError: If the custodian has no such key.
        StorageError: See `seal_data`.
    """
    return seal_data(
        stream,
        path=path,
        key=data_key(place, key),
        signer=PartySigner(read_party_key(place.key_path)),
        on_records=on_records,
    )


def data_key(place: CustodianPlace, name: str | None) -> Secret:
    """Returns one of a custodian's data keys.

    Args:
        place: The custodian.
        name: The key's name in plans, or the label of an active one; None for the only
            active data key.

    Raises:
        ConfigError: If there is none, there are several and none is named, or none has
            that label.
        VerificationError: If there is no key of that name, or it was revoked.
        StorageError: If the keyring or the register cannot be read.
    """
    with open_register(place) as register:
        keys = open_keys(place, register)
        found = _key_name(place, register.kept_keys(), name)
        return keys.secret(found, kind="data")


def owner_of(place: CustodianPlace) -> str:
    """Returns the public half of the party's key, as manifests name an owner.

    Raises:
        ConfigError: If the key cannot be read.
    """
    return PartySigner(read_party_key(place.key_path)).owner


def _key_name(place: CustodianPlace, rows: Sequence[KeyRow], name: str | None) -> str:
    # A label has no colon, so it is never taken for a name.
    if name is not None and ":" in name:
        return name
    labels = {
        row.key_id: row.label
        for row in rows
        if row.kind == "data" and row.state == "active"
    }
    wanted = [key for key, label in labels.items() if name in (None, label)]
    if len(wanted) == 1:
        return wanted[0]
    listed = ", ".join(f"{label} ({key})" for key, label in labels.items())
    if not labels:
        raise ConfigError(
            f"the custodian of {place.party!r} has no active data key",
            code="data-key-missing",
            expected="a data key",
            remedy="Make one: cloister custodian keys add DIR data.",
        )
    raise ConfigError(
        f"the custodian of {place.party!r} has several active data keys"
        if name is None
        # Not what was said instead: it may be the key itself.
        else f"the custodian of {place.party!r} has no active data key of that label",
        code="data-key-unnamed" if name is None else "data-key-unknown",
        expected="--key with the label or the name of one of them",
        got=listed,
        remedy="`cloister custodian keys list DIR` shows them.",
    )
