"""A worker's sealed records with a host that does with the file what it likes.

The story knows every record by its hash alone, so that a record that is found in memory
was left there by what is under test.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.support.canaries import Canaries, shown_of
from tests.support.sealed_sets import ColumnStream, Owner, SealedSet, sealed_set
from tests.support.single_updates import Veiled, holders_of, veiled_bytes

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.read_ahead import SourceAhead
from cloister.storage.record_cipher import TAG_BYTES
from cloister.storage.records import Batch, Field, Schema, SplitName
from cloister.storage.sealed_data import DataPin, read_sealed_data
from cloister.storage.sealed_file import END, MAGIC

TRAIN, HELD_OUT = 6, 3
SCHEMA = Schema(
    fields=(
        Field(name="label", dtype="uint8", below=10),
        Field(name="note", dtype="uint8", shape=(63,)),
    )
)
SEALED_BYTES = SCHEMA.record_bytes + TAG_BYTES


def notes(*, seed: int, train: int = TRAIN, held_out: int = HELD_OUT) -> ColumnStream:
    """Returns records that nobody could mistake for noise."""
    generator = np.random.default_rng(seed)

    def columns(count: int) -> Batch:
        return {
            "label": generator.integers(0, 10, count).astype(np.uint8),
            "note": generator.integers(0, 256, (count, 63)).astype(np.uint8),
        }

    return ColumnStream(
        splits={"train": columns(train), "held-out": columns(held_out)}, schema=SCHEMA
    )


@dataclass(frozen=True)
class Lying:
    """A sealed file taken apart; whoever has the file can do that."""

    records: tuple[bytes, ...]
    line: bytes

    @classmethod
    def at(cls, path: Path) -> Lying:
        content = path.read_bytes()
        end = len(content) - len(END) - 8
        length = int.from_bytes(content[end : end + 8], "little")
        body = content[len(MAGIC) : end - length]
        return cls(
            tuple(
                body[at : at + SEALED_BYTES] for at in range(0, len(body), SEALED_BYTES)
            ),
            content[end - length : end],
        )

    def put(self, path: Path) -> None:
        """Writes it as a file with two proper ends."""
        length = len(self.line).to_bytes(8, "little")
        path.write_bytes(MAGIC + b"".join(self.records) + self.line + length + END)


class SealedStory:
    """Alice's records, what the plan says of them, and her worker.

    Attributes:
        path: The file; it is the host's.
        pin: What the plan says.
        owner: Alice.
        key: Her data key.
        manifest: Of what she sealed.
    """

    def __init__(self, directory: Path, *, seed: int = 1) -> None:
        self.owner = Owner()
        self.key = Secret(np.random.default_rng(seed).bytes(32))
        self._directory = directory
        self._canaries = Canaries()
        self._canaries.plant("data key", self.key.reveal())
        self._marks: list[Veiled] = []
        self._hashes: dict[tuple[SplitName, int], bytes] = {}
        made = self.seal("data.sealed", notes(seed=seed))
        self.path, self.pin, self.manifest = made.path, made.pin, made.made.manifest

    def seal(
        self,
        name: str,
        stream: ColumnStream,
        *,
        owner: Owner | None = None,
        key: Secret | None = None,
    ) -> SealedSet:
        """Seals records, and looks for them from now on."""
        made = sealed_set(
            self._directory / name,
            stream=stream,
            owner=owner or self.owner,
            key=key or self.key,
        )
        for split, columns in stream.splits.items():
            for index in range(len(columns["label"])):
                note = columns["note"][index].tobytes()
                self._canaries.plant(f"{name} {split} {index}", note)
                self._marks.append(veiled_bytes(note[:24]))
                if name == "data.sealed":
                    self._hashes[split, index] = _hash_of(columns, index)
            for column in columns.values():
                column.fill(0)
        return made

    def copy(self, name: str) -> Path:
        """Returns a copy that the host made while the file was as it should be."""
        return shutil.copyfile(self.path, self._directory / name)

    def starts(
        self, *, key: Secret | None = None, pin: DataPin | None = None
    ) -> Reader:
        """Returns what her worker reads of, if it takes the file."""
        unopened = read_sealed_data(self.path).check_pin(pin or self.pin)
        source = unopened.open(key or self.key, schema=SCHEMA)
        return Reader(SourceAhead(source), self._hashes)

    def refuses(self, *, key: Secret | None = None) -> StorageError:
        """Returns why her worker does not take the file."""
        with pytest.raises(StorageError) as caught:
            self.starts(key=key)
        return self.quiet(caught.value)

    def quiet(self, error: StorageError) -> StorageError:
        """Returns an error, in which nothing of a record or a key is."""
        assert self._canaries.found_in(shown_of(error)) == set()
        return error

    def assert_nothing_left(self, *files: str) -> None:
        """Nothing but these files is on disk, and no record or key is in them."""
        lying = {p.relative_to(self._directory).as_posix() for p in self._below()}
        assert lying == {"data.sealed", *files}
        assert self._canaries.found_below(self._directory) == {}

    def assert_nothing_remembered(self) -> None:
        """No record is in memory, where errors and their stack frames still are."""
        assert holders_of(self._marks) == []

    def _below(self) -> list[Path]:
        return [path for path in self._directory.rglob("*") if path.is_file()]


class Reader:
    """Reads records as training does: ahead, and in a thread of its own."""

    def __init__(
        self, source: SourceAhead, hashes: dict[tuple[SplitName, int], bytes]
    ) -> None:
        self._source = source
        self._hashes = hashes
        self._refusals: list[StorageError] = []  # as whoever writes them down has them

    def reads(self, split: SplitName, *indices: int) -> None:
        """Reads records; they are those that alice sealed there."""
        wanted = np.array(indices, np.int64)
        records = self._source.split(split)
        records.expect(wanted)
        batch = records.read(wanted)
        for row, index in enumerate(indices):
            assert _hash_of(batch, row) == self._hashes[split, index]

    def expects(self, split: SplitName, *indices: int) -> None:
        """Begins to read records, and waits until they are there."""
        records = self._source.split(split)
        records.expect(np.array(indices, np.int64))
        # Its one thread does one thing after another.
        other: SplitName = "held-out" if split == "train" else "train"
        self._source.split(other).read(np.array([0]))

    def refuses(self, split: SplitName, *indices: int) -> str:
        """Returns the code with which these records are refused, each by its name."""
        codes = set()
        for index in indices:
            with pytest.raises(StorageError) as caught:
                self.reads(split, index)
            assert f"{split} record" in str(caught.value)
            if caught.value.code == "data-damaged":
                assert f"{split} record {index} " in str(caught.value)
            codes.add(caught.value.code)
            self._refusals.append(caught.value)
        (code,) = codes
        return code

    def reads_all_but(self, *missing: tuple[SplitName, int]) -> None:
        """Reads every other record; the harm goes no further."""
        for place in self._hashes.keys() - set(missing):
            self.reads(*place)


def _hash_of(batch: Batch, row: int) -> bytes:
    digest = hashlib.sha256(batch["label"][row].tobytes())
    digest.update(batch["note"][row].tobytes())
    return digest.digest()
