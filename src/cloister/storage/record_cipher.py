"""Encryption of single records (``docs/spec/sealed-data.md``).

AES-256-GCM (NIST SP 800-38D). The key is one data set's alone, derived from the party's
data key and the data set's random id; under it every record has a nonce of its own, its
split and index. So no nonce repeats, however often data is sealed with one data key,
and a record opens in no other place than its own.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.storage.keys import KEY_BYTES, Secret
from cloister.storage.records import SplitName

DATASET_ID_BYTES: Final = 32
TAG_BYTES: Final = 16
_LABEL: Final = b"cloister/data/1 record\0"
_KEY_INFO: Final = b"cloister/data/1 key"
_SPLITS: Final[dict[SplitName, int]] = {"train": 1, "held-out": 2}


class RecordCipher:
    """Seals and opens the records of one data set.

    Args:
        key: The party's data key.
        dataset_id: `DATASET_ID_BYTES` random bytes, made for this data set.
        layout: `record_layout.layout_digest` of its schema.
    """

    __slots__ = ("_aead", "_context")

    def __init__(self, key: Secret, *, dataset_id: bytes, layout: bytes) -> None:
        derived = HKDF(
            algorithm=SHA256(), length=KEY_BYTES, salt=dataset_id, info=_KEY_INFO
        ).derive(key.reveal())
        self._aead = AESGCM(derived)
        self._context = _LABEL + dataset_id + layout

    def seal(self, record: bytes, *, split: SplitName, index: int) -> bytes:
        """Returns ciphertext and tag: `TAG_BYTES` more than the record."""
        place = _place(split, index)
        return self._aead.encrypt(place, record, self._context + place)

    def open_into(
        self,
        sealed: bytes | memoryview,
        into: memoryview,
        *,
        split: SplitName,
        index: int,
    ) -> None:
        """Writes the record into `into`, which has exactly its length.

        Raises:
            InvalidTag: If it is not the very record sealed in that place.
        """
        place = _place(split, index)
        try:
            self._aead.decrypt_into(place, sealed, self._context + place, into)
        except InvalidTag:
            # The library decrypts before it compares the tag: nothing of it is kept.
            into[:] = bytes(len(into))
            raise


def _place(split: SplitName, index: int) -> bytes:
    """Returns a record's nonce: 1 byte of split, 3 of zero, 8 of index, big endian."""
    return bytes((_SPLITS[split], 0, 0, 0)) + index.to_bytes(8, "big")
