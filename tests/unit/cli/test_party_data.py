"""A party's records: those that the plan pins, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.softmax.task import Softmax
from tests.support.places import place_of
from tests.support.plan_tree import (
    CLASSES,
    FEATURES,
    Tree,
    add_recipient,
    plan_tree,
    put,
    toml_of,
)

from cloister.cli.party_data import open_data, open_recipient_data
from cloister.cli.places import Place
from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.plan.plan import parse_plan
from cloister.storage.raw_shard import digest_raw_shard

TASK = Softmax(FEATURES, CLASSES)
DATA = "data"


@pytest.fixture
def digest(tmp_path: Path) -> str:
    """Writes a party's records; returns their digest."""
    records = tmp_path / DATA
    records.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (records / name).write_bytes(bytes(2 * (1 + FEATURES)))
    return digest_raw_shard(records)


def tree_of(digest: str | None) -> Tree:
    tree = add_recipient(plan_tree(), "rita")
    return tree if digest is None else put(tree, ("party", 3, "data"), digest)


def rita(directory: Path, *, pinned: str | None, named: str | None) -> Place:
    plan = parse_plan(toml_of(tree_of(pinned)))
    return place_of(plan, directory, party="rita", data=named)


def refusal(place: Place) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        open_recipient_data(place, TASK)
    return caught.value


def test_a_recipient_evaluates_on_what_the_plan_pins(
    tmp_path: Path, digest: str
) -> None:
    opened = open_recipient_data(rita(tmp_path, pinned=digest, named=DATA), TASK)
    assert opened is not None
    assert opened.digest == digest


def test_a_recipient_without_data_evaluates_on_nothing(tmp_path: Path) -> None:
    assert open_recipient_data(rita(tmp_path, pinned=None, named=None), TASK) is None


def test_a_host_names_no_records_that_nobody_signed(
    tmp_path: Path, digest: str
) -> None:
    """It would read the metrics over them, and with enough of those the model."""
    error = refusal(rita(tmp_path, pinned=None, named=DATA))
    assert isinstance(error, ConfigError)
    assert error.code == "data-not-pinned"
    error = refusal(rita(tmp_path, pinned=f"sha256:{64 * 'd'}", named=DATA))
    assert isinstance(error, StorageError)
    assert (error.code, error.got) == ("data-differs", digest)


def test_a_recipient_whose_plan_pins_data_needs_it(tmp_path: Path, digest: str) -> None:
    error = refusal(rita(tmp_path, pinned=digest, named=None))
    assert isinstance(error, ConfigError)
    assert error.code == "data-missing"


@pytest.mark.parametrize("altered", ["data_batch_1.bin", "test_batch.bin"])
def test_one_other_byte_is_other_data(
    tmp_path: Path, digest: str, altered: str
) -> None:
    place = rita(tmp_path, pinned=digest, named=DATA)
    file = tmp_path / DATA / altered
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    assert refusal(place).code == "data-differs"


def test_a_workers_data_is_held_to_the_plan_likewise(
    tmp_path: Path, digest: str
) -> None:
    plan = parse_plan(toml_of(put(plan_tree(), ("party", 1, "data"), digest)))
    assert open_data(place_of(plan, tmp_path, data=DATA), TASK).digest == digest
    other = parse_plan(toml_of(plan_tree()))
    for place, code in (
        (place_of(other, tmp_path, data=DATA), "data-differs"),
        (place_of(plan, tmp_path), "data-missing"),
    ):
        with pytest.raises(CloisterError) as caught:
            open_data(place, TASK)
        assert caught.value.code == code
