from __future__ import annotations

import sys

import numpy as np
import pytest

from cloister.errors import ConfigError
from cloister.storage.records import Batch, SplitName
from cloister.workloads.breast_cancer import (
    CLASSES,
    FEATURES,
    HospitalRecords,
    deal_breast_cancer,
)
from cloister.workloads.tabular import TabularClassification

HOSPITALS = ("north", "south", "west")


def together(dealt: dict[str, HospitalRecords], split: SplitName) -> Batch:
    """Returns a split of all hospitals, its rows in one order whoever has them."""
    features = np.concatenate([it.splits[split]["features"] for it in dealt.values()])
    labels = np.concatenate([it.splits[split]["label"] for it in dealt.values()])
    order = np.lexsort(features.T)
    return {"features": features[order], "label": labels[order]}


def test_every_tumour_is_one_hospitals_and_the_held_out_are_the_same() -> None:
    first, second = (deal_breast_cancer(HOSPITALS, seed=seed) for seed in (1, 2))
    counts: dict[SplitName, int] = {"train": 427, "held-out": 142}
    for split, count in counts.items():
        whole = together(first, split)
        assert len(np.unique(whole["features"], axis=0)) == count
        again = together(second, split)
        for name in ("features", "label"):
            np.testing.assert_array_equal(whole[name], again[name])
    assert not np.array_equal(
        first["north"].splits["train"]["features"],
        second["north"].splits["train"]["features"],
    )


def test_one_seed_deals_alike() -> None:
    first, second = (deal_breast_cancer(HOSPITALS, seed=3) for _ in range(2))
    for name in HOSPITALS:
        for split, columns in first[name].splits.items():
            for field, column in columns.items():
                np.testing.assert_array_equal(
                    column, second[name].splits[split][field], strict=True
                )


def test_the_hospitals_see_different_patients() -> None:
    dealt = deal_breast_cancer(HOSPITALS, seed=1)
    labels = [it.splits["train"]["label"].astype(float) for it in dealt.values()]
    malignant = [column.mean() for column in labels]
    assert malignant[0] > 0.85
    assert malignant[-1] < 0.1
    sizes = [len(column) for column in labels]
    assert sizes[1] < min(sizes[0], sizes[2]) / 4


@pytest.mark.parametrize("count", [2, 10])
def test_any_number_of_hospitals_has_records_of_both_splits(count: int) -> None:
    names = [f"hospital-{number}" for number in range(count)]
    for records in deal_breast_cancer(names, seed=1).values():
        for columns in records.splits.values():
            assert len(columns["label"]) >= 2


@pytest.mark.parametrize("count", [0, 1, 11])
def test_too_few_or_too_many_hospitals_are_refused(count: int) -> None:
    with pytest.raises(ConfigError) as caught:
        deal_breast_cancer([str(number) for number in range(count)], seed=1)
    assert caught.value.code == "hospitals-number"


def test_the_stream_gives_the_splits_in_order_and_in_the_schemas_types() -> None:
    [records, *_] = deal_breast_cancer(HOSPITALS, seed=1).values()
    task = TabularClassification(features=FEATURES, classes=CLASSES)
    assert records.schema == task.schema()
    chunks = list(records.chunks())
    assert [chunk.split for chunk in chunks] == ["train", "held-out"]
    assert records.total == sum(map(len, chunks))
    for chunk in chunks:
        for field in records.schema.fields:
            column = chunk.columns[field.name]
            assert column.dtype == field.dtype
            assert column.shape == (len(chunk), *field.shape)
            if field.below is not None:
                assert set(np.unique(column)) <= set(range(field.below))


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError) as caught:
        deal_breast_cancer(HOSPITALS, seed=1)
    assert caught.value.code == "breast-cancer-missing"
