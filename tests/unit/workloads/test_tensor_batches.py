from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.support.records_in_memory import MemoryRecords

from cloister.errors import ConfigError
from cloister.storage.record_layout import pack, unpack
from cloister.storage.records import Batch, Field, Records, Schema
from cloister.workloads.tensor_batches import RecordTensors, Tensors, to_array

RANDOM = np.random.default_rng(0)


def batch_of(records: Records, *indices: int) -> Tensors:
    return RecordTensors(records).batch(np.array(indices), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("uint8", (), torch.int64),
        ("uint8", (3, 2), torch.uint8),
        ("int8", (2,), torch.int64),
        ("uint16", (), torch.int64),
        ("int32", (13,), torch.int64),
        ("uint32", (26,), torch.int64),
        ("int64", (), torch.int64),
        ("float16", (), torch.float32),
        ("float32", (4,), torch.float32),
        ("float64", (4,), torch.float32),
    ],
)
def test_fields_become_what_pytorch_computes_with(
    dtype: str, shape: tuple[int, ...], expected: torch.dtype
) -> None:
    column: NDArray[np.generic] = RANDOM.integers(0, 100, (5, *shape)).astype(dtype)
    tensor = batch_of(MemoryRecords({"label": column}), 4, 0, 4)["label"]
    assert tensor.dtype == expected
    assert np.array_equal(tensor.numpy(), column[np.array([4, 0, 4])])


def test_fields_of_stored_records_need_not_be_aligned() -> None:
    # As sealed records are opened: each field a view into the bytes of all of them.
    schema = Schema(
        fields=(
            Field(name="label", dtype="uint8"),
            Field(name="point", dtype="float32", shape=(3,)),
        )
    )
    columns: Batch = {
        "label": RANDOM.integers(0, 9, 6).astype(np.uint8),
        "point": RANDOM.standard_normal((6, 3)).astype(np.float32),
    }
    stored = unpack(pack(columns, schema), schema)
    stored["point"].flags.writeable = False
    batch = batch_of(MemoryRecords(stored), 2, 5)
    assert np.array_equal(batch["point"].numpy(), columns["point"][np.array([2, 5])])
    batch["point"].add_(1)  # the batch's own


def test_a_batch_has_every_field_under_its_name() -> None:
    records = MemoryRecords({"label": np.zeros(4, np.uint8), "x": np.zeros((4, 2))})
    assert len(RecordTensors(records)) == 4
    batch = batch_of(records, 1)
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "label": (1,),
        "x": (1, 2),
    }


def test_an_array_of_a_tensor_is_its_own() -> None:
    tensor = torch.tensor([1.5, 2.0], requires_grad=True)
    array = to_array(tensor)
    array[0] = 0
    assert tensor.tolist() == [1.5, 2.0]
    assert to_array(tensor.bfloat16()).dtype == np.float32


def test_what_is_no_tensor_is_no_prediction() -> None:
    with pytest.raises(ConfigError, match="no tensor") as caught:
        to_array([1.0])
    assert caught.value.code == "task-predict"
