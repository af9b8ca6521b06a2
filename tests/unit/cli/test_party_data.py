"""A party's records: those that the plan pins, or none."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from examples.softmax.task import Softmax
from tests.support.places import place_of
from tests.support.plan_tree import (
    CLASSES,
    FEATURES,
    Tree,
    add_recipient,
    at,
    plan_tree,
    put,
    toml_of,
)
from tests.support.sealed_sets import (
    DATA_KEY,
    ColumnStream,
    Owner,
    SealedSet,
    same_records,
    sealed_set,
)
from typing_extensions import override

from cloister.cli.party_data import find_data, find_recipient_data
from cloister.cli.places import Place
from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.plan.plan import parse_plan
from cloister.storage.keys import KeyKind, KeySource, Secret, key_id
from cloister.storage.raw_shard import RawShard, digest_raw_shard
from cloister.storage.records import Batch, DataSource, SplitName

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
        find_recipient_data(place, TASK)
    return caught.value


def test_a_recipient_evaluates_on_what_the_plan_pins(
    tmp_path: Path, digest: str
) -> None:
    opened = find_recipient_data(rita(tmp_path, pinned=digest, named=DATA), TASK)
    assert opened is not None
    assert isinstance(opened.found, RawShard)
    assert opened.found.digest == digest


def test_a_recipient_without_data_evaluates_on_nothing(tmp_path: Path) -> None:
    assert find_recipient_data(rita(tmp_path, pinned=None, named=None), TASK) is None


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
    found = find_data(place_of(plan, tmp_path, data=DATA), TASK)
    assert isinstance(found.found, RawShard)
    assert found.found.digest == digest
    assert found.open(Keys(None)) is found.found, "no key is asked for"
    other = parse_plan(toml_of(plan_tree()))
    for place, code in (
        (place_of(other, tmp_path, data=DATA), "data-differs"),
        (place_of(plan, tmp_path), "data-missing"),
    ):
        with pytest.raises(CloisterError) as caught:
            find_data(place, TASK)
        assert caught.value.code == code


# Sealed data sets.

ALICE: tuple[str | int, ...] = ("party", 1)
FILE = "data.sealed"


class Keys(KeySource):
    """What a node was released: a data key, or nothing."""

    def __init__(self, data: Secret | None) -> None:
        self._data = data

    @override
    def key(self, kind: KeyKind) -> Secret:
        if kind != "data" or self._data is None:
            raise ConfigError(f"no {kind} key", code="key-missing")
        return self._data


def blobs(count: int, *, seed: int) -> Batch:
    generator = np.random.default_rng(seed)
    return {
        "label": generator.integers(0, CLASSES, count).astype(np.uint8),
        "image": generator.integers(0, 256, (count, FEATURES)).astype(np.uint8),
    }


def sealed(path: Path, *, owner: Owner, seed: int = 0) -> SealedSet:
    splits: dict[SplitName, Batch] = {
        "train": blobs(5, seed=seed),
        "held-out": blobs(3, seed=seed + 1),
    }
    stream = ColumnStream(splits=splits, schema=TASK.schema())
    return sealed_set(path, stream=stream, owner=owner)


def planned(data: SealedSet) -> Tree:
    """Returns a plan that pins a data set as alice's."""
    alice = at(plan_tree(), ALICE)
    assert isinstance(alice, dict)
    pin = data.pin
    own: Tree = {"key": pin.owner, "data": pin.digest, "data_key": pin.key}
    return put(plan_tree(), ALICE, {**alice, **own})


def alice_with(tree: Tree, directory: Path, *, data: str = FILE) -> Place:
    return place_of(parse_plan(toml_of(tree)), directory, data=data)


def test_a_sealed_data_set_is_found_without_its_key_and_opened_with_it(
    tmp_path: Path,
) -> None:
    data = sealed(tmp_path / FILE, owner=Owner())
    found = find_data(alice_with(planned(data), tmp_path), TASK)
    with pytest.raises(ConfigError, match="no data key"):
        found.open(Keys(None))
    opened: DataSource = found.open(Keys(DATA_KEY))
    records = opened.split("train")
    batch = records.read(np.array([3, 1]))
    assert same_records(batch, data.stream.splits["train"], [3, 1])
    assert len(opened.split("held-out")) == 3


def test_another_key_than_the_plans_opens_nothing(tmp_path: Path) -> None:
    data = sealed(tmp_path / FILE, owner=Owner())
    found = find_data(alice_with(planned(data), tmp_path), TASK)
    other = Secret(bytes(32))
    with pytest.raises(StorageError) as caught:
        found.open(Keys(other))
    assert caught.value.code == "data-key-differs"
    assert caught.value.got == key_id("data", other)


def test_a_sealed_data_set_that_is_not_the_plans_is_refused_before_any_key(
    tmp_path: Path,
) -> None:
    """Of the same owner, of another one, and under another key."""
    owner = Owner()
    tree = planned(sealed(tmp_path / FILE, owner=owner))
    for name, whose in (("older", owner), ("foreign", Owner())):
        sealed(tmp_path / name, owner=whose)
        with pytest.raises(StorageError) as caught:
            find_data(alice_with(tree, tmp_path, data=name), TASK)
        assert caught.value.code == "data-differs"
    for key, code in (("key", "data-foreign"), ("data_key", "data-key-differs")):
        value = f"{'ed25519' if key == 'key' else 'sha256'}:{64 * 'e'}"
        changed = put(msgspec.to_builtins(tree), (*ALICE, key), value)
        with pytest.raises(StorageError) as caught:
            find_data(alice_with(changed, tmp_path), TASK)
        assert caught.value.code == code


def test_records_of_another_task_are_refused(tmp_path: Path) -> None:
    data = sealed_set(tmp_path / FILE)
    found = find_data(alice_with(planned(data), tmp_path), TASK)
    with pytest.raises(StorageError) as caught:
        found.open(Keys(DATA_KEY))
    assert caught.value.code == "data-schema"


def test_raw_records_do_not_pass_for_sealed_ones_nor_the_reverse(
    tmp_path: Path, digest: str
) -> None:
    data = sealed(tmp_path / FILE, owner=Owner())
    raw = put(planned(data), (*ALICE, "data"), digest)
    for tree, name, code in (
        (raw, DATA, "data-not-sealed"),
        (planned(data), DATA, "data-not-sealed"),
        (put(plan_tree(), (*ALICE, "data"), data.pin.digest), FILE, "data-sealed"),
    ):
        with pytest.raises(StorageError) as caught:
            find_data(alice_with(tree, tmp_path, data=name), TASK)
        assert caught.value.code == code


def test_a_recipient_evaluates_on_sealed_records_too(tmp_path: Path) -> None:
    data = sealed(tmp_path / FILE, owner=Owner())
    tree = add_recipient(plan_tree(), "rita", key=data.pin.owner)
    put(tree, ("party", 3, "data"), data.pin.digest)
    put(tree, ("party", 3, "data_key"), data.pin.key)
    place = place_of(parse_plan(toml_of(tree)), tmp_path, party="rita", data=FILE)
    found = find_recipient_data(place, TASK)
    assert found is not None
    assert len(found.open(Keys(DATA_KEY)).split("held-out")) == 3
