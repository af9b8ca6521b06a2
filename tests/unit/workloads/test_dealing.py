"""Data that is dealt out: every record goes to one party, whatever the chunks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.storage.raw_shard import open_raw_shard
from cloister.storage.record_stream import Chunk, RecordStream
from cloister.storage.records import Field, Schema, SplitName
from cloister.workloads.dealing import deal_in_turn
from cloister.workloads.digits import DigitStream
from cloister.workloads.shards import write_digit_shards

SCHEMA = Schema(fields=(Field(name="number", dtype="int64"),))
Sizes = dict[SplitName, list[int]]


@dataclass(frozen=True)
class Numbers:
    """Records that count from 0 in each split, in chunks of given sizes."""

    sizes: Sizes
    format: str = "numbers"
    schema: Schema = SCHEMA
    total: int | None = None

    def chunks(self) -> Iterator[Chunk]:
        for split, sizes in self.sizes.items():
            first = 0
            for size in sizes:
                columns = {"number": np.arange(first, first + size)}
                yield Chunk(split=split, columns=dict(columns))
                first += size


def numbers(stream: RecordStream, split: str) -> list[int]:
    return [
        int(number)
        for chunk in stream.chunks()
        if chunk.split == split
        for number in chunk.columns["number"]
    ]


@given(
    train=st.lists(st.integers(1, 9), max_size=6),
    held_out=st.lists(st.integers(1, 9), max_size=6),
    parties=st.integers(1, 5),
)
def test_record_i_goes_to_party_i_modulo_their_number(
    train: list[int], held_out: list[int], parties: int
) -> None:
    whole = Numbers({"train": train, "held-out": held_out})
    for place, mine in enumerate(deal_in_turn(whole, parties)):
        for split, sizes in whole.sizes.items():
            expected = list(range(place, sum(sizes), parties))
            assert numbers(mine, split) == expected
            # A stream can be read again.
            assert numbers(mine, split) == expected


def test_data_for_nobody_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        deal_in_turn(Numbers({}), 0)
    assert caught.value.code == "parties-missing"


def test_dealt_digits_are_those_of_the_shards(tmp_path: Path) -> None:
    write_digit_shards([tmp_path / "alice", tmp_path / "bob"], seed=7)
    for name, mine in zip(
        ("alice", "bob"), deal_in_turn(DigitStream(seed=7), 2), strict=True
    ):
        shard = open_raw_shard(tmp_path / name, mine.schema)
        for split in ("train", "held-out"):
            records = shard.split(split)
            expected = records.read(np.arange(len(records)))
            for field in mine.schema.fields:
                dealt = np.concatenate(
                    [
                        it.columns[field.name]
                        for it in mine.chunks()
                        if it.split == split
                    ]
                )
                assert (dealt == expected[field.name]).all()


def test_digits_have_the_shape_that_a_task_wants() -> None:
    stream = DigitStream(seed=7, image_shape=(192,))
    first = next(stream.chunks())
    assert first.columns["image"].shape[1:] == (192,)
    assert stream.schema.fields[1].shape == (192,)
    assert stream.total == sum(len(chunk) for chunk in stream.chunks()) == 1797
