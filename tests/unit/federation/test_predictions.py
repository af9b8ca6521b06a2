"""What a recipient's node predicts: sealed to the one who asks, and nowhere else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from examples.softmax.task import Softmax
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import CLASSES, FEATURES
from tests.support.predicting_task import Item, Predicting, PredictingSoftmax
from tests.support.recipient_desk import (
    ASKER,
    ASKERS_RECIPIENT,
    TASK,
    Desk,
    Keys,
    predicting_federation,
)
from tests.support.recorded_log import RecordedLog
from tests.support.records_in_memory import clouds
from tests.support.running import Run
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    ConfigError,
    StorageError,
    VerificationError,
)
from cloister.federation.predictions import join_predictions, seal_predictions
from cloister.federation.recipient import SealedCopy
from cloister.federation.task import LearnerSettings, Task
from cloister.storage.keys import Secret
from cloister.storage.model_vault import SealedModel, new_identity, open_model
from cloister.storage.records import DataSource
from cloister.storage.sealed_data import read_sealed_data
from cloister.storage.sealed_data_set import SealedDataSet
from cloister.storage.sealed_file import MAGIC

RECORDS = 40
OUT = "predictions.safetensors.age"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Secret]:
    return predicting_federation(tmp_path_factory.mktemp("rita"))


class Asking(Desk):
    """A desk at which predictions are asked for."""

    def opened(self, name: str = "records.sealed") -> SealedDataSet:
        unopened = read_sealed_data(self.directory / name)
        return unopened.open(self.data_key, schema=TASK.schema())

    def predict(
        self,
        run: Run,
        *,
        log: RecordedLog | None = None,
        task: Task = TASK,
        keys: Keys | None = None,
        sealed: SealedCopy | None = None,
        source: SealedDataSet | None = None,
    ) -> SealedModel:
        return run(
            seal_predictions(
                self.federation.node("rita"),
                task,
                sealed=sealed or self.copy(),
                keys=keys or self.keys,
                source=source or self.opened(),
                path=self.directory / OUT,
                log=(log or RecordedLog()).logger(),
            )
        )


@pytest.fixture
def desk(made: tuple[Federation, Secret], tmp_path: Path) -> Asking:
    federation, key = made
    desk = Asking(federation=federation, data_key=key, directory=tmp_path)
    desk.seal_model()
    desk.seal_records("records.sealed", held_out=RECORDS)
    return desk


def refusal(desk: Asking, run: Run, **given: object) -> CloisterError:
    """Returns why nothing is predicted; nothing is written then, and little said."""
    before, log = desk.files(), RecordedLog()
    with pytest.raises(CloisterError) as caught:
        desk.predict(run, log=log, **given)  # type: ignore[arg-type]
    assert desk.files() == before
    assert [event["event"] for event in log.events] == []
    return caught.value


def test_the_one_who_asks_opens_the_predictions_and_nobody_else(
    desk: Asking, run: Run
) -> None:
    written = desk.predict(run)
    opened = open_model(written.path, identity=ASKER)
    labels, scores = opened.arrays["label"], opened.arrays["score"]
    assert (labels.shape, str(labels.dtype)) == ((RECORDS,), "uint8")
    assert (scores.shape, str(scores.dtype)) == ((RECORDS, CLASSES), "float32")
    assert written.recipients == (ASKERS_RECIPIENT,)
    for identity in (
        desk.federation.owner,
        desk.federation.vaults["rita"],
        new_identity()[0],
    ):
        with pytest.raises(StorageError) as caught:
            open_model(written.path, identity=identity)
        assert caught.value.code == "model-not-for-identity"


def test_a_row_is_what_the_model_says_of_the_record_in_its_place(
    desk: Asking, run: Run
) -> None:
    opened = open_model(desk.predict(run).path, identity=ASKER)
    source = clouds(
        seed=3, features=FEATURES, classes=CLASSES, train=8, held_out=RECORDS
    )
    settings = LearnerSettings(
        party="rita", batch_size=16, seed=7, threads=1, precision="float32"
    )
    learner = TASK.learner(source, settings)
    learner.load(desk.model)
    wanted = join_predictions(learner.predict(), records=RECORDS)
    assert wanted.keys() == opened.arrays.keys()
    for name, array in wanted.items():
        assert np.array_equal(opened.arrays[name], array)


def test_run_model_and_data_set_stand_beside_them_under_the_seal(
    desk: Asking, run: Run
) -> None:
    opened = open_model(desk.predict(run).path, identity=ASKER)
    assert opened.metadata == {
        "run": "blobs/a",
        "plan": desk.metadata()["plan"],
        "model": desk.copy().recorded,
        "data": desk.opened().digest,
        "records": str(RECORDS),
        "simulated": "true",
    }


def test_in_the_log_stand_counts_and_the_digest_of_what_is_sealed(
    desk: Asking, run: Run
) -> None:
    log = RecordedLog()
    written = desk.predict(run, log=log)
    opened, sealed = log.events
    assert opened["event"] == "model-opened"
    assert {k: v for k, v in sealed.items() if k not in ("level", "timestamp")} == {
        "event": "predictions-sealed",
        "records": RECORDS,
        "data": desk.opened().digest,
        "size_bytes": written.size_bytes,
        "sha256": written.sha256,
    }


def test_nothing_but_the_sealed_predictions_is_written(desk: Asking, run: Run) -> None:
    before = desk.files()
    written = desk.predict(run)
    assert sorted({*before, OUT}) == desk.files()
    scores = open_model(written.path, identity=ASKER).arrays["score"]
    for path in desk.directory.iterdir():
        content = path.read_bytes()
        assert scores.tobytes()[:16] not in content, path
        assert b"score" not in content, path


def test_records_without_training_ones_will_do(desk: Asking, run: Run) -> None:
    desk.seal_records("all.sealed", train=0, held_out=RECORDS)
    written = desk.predict(run, source=desk.opened("all.sealed"))
    assert open_model(written.path, identity=ASKER).metadata["records"] == str(RECORDS)


def test_records_without_held_out_ones_are_none_to_predict_on(
    desk: Asking, run: Run
) -> None:
    desk.seal_records("train.sealed", train=8, held_out=0)
    error = refusal(desk, run, source=desk.opened("train.sealed"))
    assert isinstance(error, StorageError)
    assert error.code == "data-empty"


@pytest.mark.parametrize("record", [0, 17, RECORDS - 1])
def test_after_one_altered_record_nothing_is_written(
    desk: Asking, run: Run, record: int
) -> None:
    path = desk.directory / "records.sealed"
    manifest = read_sealed_data(path).manifest
    size = manifest.schema.record_bytes + 16
    content = bytearray(path.read_bytes())
    content[len(MAGIC) + (8 + record) * size] ^= 1
    path.write_bytes(content)
    error = refusal(desk, run)
    assert isinstance(error, StorageError)
    assert error.code == "data-damaged"
    assert str(record) in error.what


def test_a_model_of_the_hosts_own_making_predicts_nothing(
    desk: Asking, run: Run
) -> None:
    """It knows rita's recipient and all that the server would say of the model."""
    recorded = desk.copy()
    desk.seal_model(model=TASK.initial_model(seed=6))
    error = refusal(desk, run, sealed=recorded)
    assert isinstance(error, VerificationError)
    assert error.code == "audit-model"
    assert error.expected.endswith(str(recorded.recorded))


def test_another_runs_model_predicts_nothing(desk: Asking, run: Run) -> None:
    desk.seal_model(metadata={**desk.metadata(), "run": "blobs/b"})
    assert refusal(desk, run).code == "model-foreign"


def test_a_node_without_the_vault_key_predicts_nothing(desk: Asking, run: Run) -> None:
    error = refusal(desk, run, keys=Keys({"data": desk.data_key}))
    assert error.code == "key-missing"


def test_a_task_that_predicts_nothing_is_told(desk: Asking, run: Run) -> None:
    error = refusal(desk, run, task=Softmax(FEATURES, CLASSES))
    assert isinstance(error, ConfigError)
    assert error.code == "task-predict"


class Leaving(Predicting):
    """A task that has no row for the last record, or says what it saw."""

    def __init__(self, fault: str) -> None:
        super().__init__(FEATURES, CLASSES)
        self.fault = fault

    @override
    def learner(
        self, source: DataSource, settings: LearnerSettings
    ) -> PredictingSoftmax:
        fault = self.fault

        class Learner(PredictingSoftmax):
            @override
            def predict(self) -> Iterator[Item]:
                for item in super().predict():
                    if fault == "short":
                        yield {name: array[1:] for name, array in item.items()}
                    else:
                        raise ValueError(f"the first label is {item['label'][0]}")

        return Learner(self, source, settings)


@pytest.mark.parametrize(
    ("fault", "code"), [("short", "task-predict"), ("failing", "task-failed")]
)
def test_of_a_task_that_breaks_off_nothing_is_written(
    desk: Asking, run: Run, fault: str, code: str
) -> None:
    assert refusal(desk, run, task=Leaving(fault)).code == code


def test_without_predictions_in_the_plan_none_are_asked_for(
    desk: Asking, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    plain = make_federation(tmp_path / "plain", recipients=("rita",))
    other = Asking(federation=plain, data_key=desk.data_key, directory=tmp_path)
    with pytest.raises(RuntimeError):
        other.predict(run)
    with pytest.raises(RuntimeError):
        desk.predict(run, sealed=SealedCopy(path=desk.sealed, recorded=None))
    assert not (tmp_path / OUT).exists()


def unusable(*items: Item, records: int = 2) -> str:
    with pytest.raises(ConfigError) as caught:
        join_predictions(items, records=records)
    assert caught.value.code == "task-predict"
    return caught.value.got


TWO = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{}],
        [{"a": TWO}, {"a": TWO}],
        [{"a": TWO[:1]}],
        [{"a": TWO[:1]}, {"b": TWO[:1]}],
        [{"a": TWO[:1]}, {"a": TWO[:1], "b": TWO[:1]}],
        [{"a": TWO[:1]}, {"a": TWO[:1].astype(np.float64)}],
        [{"a": TWO[:1]}, {"a": TWO[:1, :2]}],
        [{"a": TWO, "b": TWO[:1]}],
        [{"a": np.float32(1)}],
        [{"a": np.array(["x", "y"])}],
        [{"a": np.array([None, None])}],
        [{"a": np.zeros(2, np.complex64)}],
        [{"a": np.zeros(2, np.longdouble)}],
    ],
)
def test_predictions_are_one_row_a_record_of_plain_numbers(
    items: list[Mapping[str, NDArray[np.generic]]],
) -> None:
    assert unusable(*items)


@given(cuts=st.lists(st.integers(0, 20), max_size=6), dtype=st.sampled_from("?bBhifd"))
def test_however_they_are_cut_the_rows_are_the_same(
    cuts: list[int], dtype: str
) -> None:
    whole = np.arange(40).reshape(20, 2).astype(dtype)
    bounds = [0, *sorted(cuts), 20]
    items = [{"a": whole[low:high]} for low, high in itertools.pairwise(bounds)]
    joined = join_predictions(items, records=20)["a"]
    assert joined.dtype == whole.dtype
    assert np.array_equal(joined, whole)


def test_a_learner_may_use_its_memory_again() -> None:
    def items() -> Iterator[Item]:
        memory = np.zeros(2)
        for number in (1, 2):
            memory[:] = number
            yield {"a": memory}

    joined = join_predictions(items(), records=4)["a"]
    assert joined.tolist() == [1, 1, 2, 2]
