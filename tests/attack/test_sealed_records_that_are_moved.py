"""The host moves, repeats, alters and takes away records of a sealed set.

What it cannot make is a record that opens anywhere but where its owner sealed it. Each
story ends with a worker that names the record, reads the others, and kept nothing.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.sealed_story import (
    HELD_OUT,
    SEALED_BYTES,
    TRAIN,
    Lying,
    SealedStory,
    notes,
)

from cloister.storage.sealed_file import MAGIC


@pytest.fixture
def story(tmp_path: Path) -> SealedStory:
    return SealedStory(tmp_path)


def put(story: SealedStory, at: int, record: bytes) -> None:
    """Writes over one record in the file, wherever the worker is with it."""
    with story.path.open("r+b") as file:
        file.seek(len(MAGIC) + at * SEALED_BYTES)
        file.write(record)


def test_two_records_change_places(story: SealedStory) -> None:
    records = Lying.at(story.path).records
    put(story, 1, records[4])
    put(story, 4, records[1])
    worker = story.starts()
    assert worker.refuses("train", 1, 4) == "data-damaged"
    worker.reads_all_but(("train", 1), ("train", 4))
    story.assert_nothing_left()


def test_one_record_is_given_more_weight_by_repeating_it(story: SealedStory) -> None:
    records = Lying.at(story.path).records
    for at in range(1, TRAIN):
        put(story, at, records[0])
    worker = story.starts()
    worker.reads("train", 0)
    assert worker.refuses("train", *range(1, TRAIN)) == "data-damaged"
    story.assert_nothing_left()


def test_a_record_to_train_on_becomes_one_to_judge_by(story: SealedStory) -> None:
    # The same index in the other split: a model that knows its test would look good.
    records = Lying.at(story.path).records
    put(story, TRAIN + 2, records[2])
    put(story, 2, records[TRAIN + 2])
    worker = story.starts()
    assert worker.refuses("held-out", 2) == "data-damaged"
    assert worker.refuses("train", 2) == "data-damaged"
    worker.reads_all_but(("train", 2), ("held-out", 2))
    story.assert_nothing_left()


def test_a_label_is_flipped_and_the_rest_left_as_it_is(story: SealedStory) -> None:
    # A stream cipher without its tag would open to the same note under another label.
    record = bytearray(Lying.at(story.path).records[3])
    record[0] ^= 1
    put(story, 3, bytes(record))
    worker = story.starts()
    assert worker.refuses("train", 3) == "data-damaged"
    worker.reads_all_but(("train", 3))
    # That note was decrypted before the tag was compared.
    story.assert_nothing_remembered()
    story.assert_nothing_left()


def test_a_tag_is_cut_into_and_zeroed(story: SealedStory) -> None:
    record = Lying.at(story.path).records[0]
    worker = story.starts()
    for forged in (record[:-1] + b"\0", record[:-16] + bytes(16), bytes(SEALED_BYTES)):
        put(story, 0, forged)
        assert worker.refuses("train", 0) == "data-damaged"
    put(story, 0, record)
    worker.reads("train", 0)
    story.assert_nothing_left()


@pytest.mark.parametrize("gone", [0, 3, TRAIN, TRAIN + HELD_OUT - 1])
def test_a_record_is_taken_away(story: SealedStory, gone: int) -> None:
    lying = Lying.at(story.path)
    kept = lying.records[:gone] + lying.records[gone + 1 :]
    replace(lying, records=kept).put(story.path)
    error = story.refuses()
    assert error.code == "data-truncated"
    assert "records are missing" in str(error)
    story.assert_nothing_left()


@pytest.mark.parametrize("at", [0, 3, TRAIN, TRAIN + HELD_OUT])
def test_a_record_too_many_is_put_in(story: SealedStory, at: int) -> None:
    lying = Lying.at(story.path)
    for extra in (lying.records[0], bytes(SEALED_BYTES), b"x"):
        more = (*lying.records[:at], extra, *lying.records[at:])
        replace(lying, records=more).put(story.path)
        error = story.refuses()
        assert error.code == "data-surplus"
        assert "more than its records" in str(error)
    story.assert_nothing_left()


def test_one_record_is_taken_away_and_another_doubled(story: SealedStory) -> None:
    # The length is right again; all records between them moved by one.
    lying = Lying.at(story.path)
    first, second, third, *others = lying.records
    replace(lying, records=(first, third, third, *others)).put(story.path)
    worker = story.starts()
    assert worker.refuses("train", 1) == "data-damaged"
    worker.reads_all_but(("train", 1))
    replace(lying, records=(second, third, *others, first)).put(story.path)
    worker = story.starts()
    assert worker.refuses("train", *range(TRAIN)) == "data-damaged"
    assert worker.refuses("held-out", *range(HELD_OUT)) == "data-damaged"
    story.assert_nothing_left()


def test_the_file_is_cut_off(story: SealedStory) -> None:
    content = story.path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, len(MAGIC) + SEALED_BYTES):
        story.path.write_bytes(content[:length])
        assert story.refuses().code == "data-truncated"
    story.assert_nothing_left()


def test_a_record_of_another_set_is_put_in_its_place(story: SealedStory) -> None:
    # Of the same owner, under the same data key, at the same index of the same split.
    story.seal("other.sealed", notes(seed=2))
    other = Lying.at(story.path.with_name("other.sealed"))
    put(story, 2, other.records[2])
    worker = story.starts()
    assert worker.refuses("train", 2) == "data-damaged"
    worker.reads_all_but(("train", 2))
    story.assert_nothing_remembered()
    story.assert_nothing_left("other.sealed")


def test_the_same_record_sealed_another_time_is_put_in_its_place(
    story: SealedStory,
) -> None:
    story.seal("again.sealed", notes(seed=1))
    again = Lying.at(story.path.with_name("again.sealed"))
    put(story, 2, again.records[2])
    assert story.starts().refuses("train", 2) == "data-damaged"
    story.assert_nothing_left("again.sealed")


def test_a_record_is_altered_after_the_worker_took_the_file(story: SealedStory) -> None:
    worker = story.starts()
    worker.reads_all_but()
    right = Lying.at(story.path).records[3]
    # What was read ahead is what was there; what is read later is what is there then.
    worker.expects("train", 3)
    put(story, 3, Lying.at(story.path).records[0])
    worker.reads_all_but(("train", 3))
    assert worker.refuses("train", 3) == "data-damaged"
    put(story, 3, right)
    worker.reads("train", 3)
    story.assert_nothing_remembered()
    story.assert_nothing_left()


def test_the_file_shrinks_after_the_worker_took_it(story: SealedStory) -> None:
    worker = story.starts()
    worker.reads("held-out", 2)
    os.truncate(story.path, len(MAGIC) + 2 * SEALED_BYTES + 5)
    worker.reads("train", 0, 1)
    assert worker.refuses("train", 2, 3, 4, 5) == "data-truncated"
    assert worker.refuses("held-out", *range(HELD_OUT)) == "data-truncated"
    story.assert_nothing_left()


def test_another_file_gets_its_name_after_the_worker_took_it(
    story: SealedStory,
) -> None:
    worker = story.starts()
    other = story.seal("other.sealed", notes(seed=2)).path
    other.replace(story.path)
    # The worker stays with the file that it compared with the plan.
    worker.reads_all_but()
    assert story.refuses().code == "data-differs"
    story.assert_nothing_left()
