from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from examples.softmax.task import Softmax
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import CLASSES, FEATURES, put
from tests.support.recipient_desk import TASK, Desk, Keys
from tests.support.recorded_log import read_events
from tests.support.records_in_memory import clouds
from tests.support.running import Run
from typing_extensions import override

from cloister.cli.journal import open_journal
from cloister.errors import CloisterError, StorageError, VerificationError
from cloister.federation.layout import ModelBuffer
from cloister.federation.recipient import ReceivedModel, SealedCopy, receive_model
from cloister.federation.task import Task
from cloister.storage.keys import KeySource, Secret, new_key
from cloister.storage.model_vault import new_identity
from cloister.storage.records import DataSource
from cloister.storage.sealed_data import read_sealed_data


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("rita"), recipients=("rita",))


@pytest.fixture(scope="module")
def evaluating(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """The plan pins records of rita's."""
    return make_federation(
        tmp_path_factory.mktemp("evaluating"),
        change=lambda tree: put(tree, ("party", 3, "data"), f"sha256:{64 * 'd'}"),
        recipients=("rita",),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiving(Desk):
    """A desk at which the model is received."""

    run: Run

    def receive(
        self,
        *,
        keys: KeySource | None = None,
        source: DataSource | None = None,
        task: Task | None = None,
        sealed: SealedCopy | None = None,
    ) -> ReceivedModel:
        with open_journal(self.directory, party="rita", as_json=False) as log:
            return self.run(
                receive_model(
                    self.federation.node("rita"),
                    task or TASK,
                    sealed=sealed or self.copy(),
                    keys=keys or self.keys,
                    source=source,
                    log=log,
                )
            )

    def refusal(self, **given: object) -> CloisterError:
        with pytest.raises(CloisterError) as caught:
            self.receive(**given)  # type: ignore[arg-type]
        return caught.value

    @property
    def identity(self) -> str:
        return self.federation.vaults["rita"]


def desk_of(federation: Federation, directory: Path, run: Run) -> Receiving:
    return Receiving(
        federation=federation, data_key=new_key(), directory=directory, run=run
    )


def vault(identity: str) -> Keys:
    return Keys({"vault": Secret(identity.encode())})


@pytest.fixture
def desk(federation: Federation, tmp_path: Path, run: Run) -> Receiving:
    return desk_of(federation, tmp_path, run)


def test_a_recipient_opens_the_model_in_its_memory(desk: Receiving) -> None:
    desk.seal_model()
    received = desk.receive()
    assert np.array_equal(received.model.data, desk.model.data)
    assert received.metadata == desk.metadata()
    assert received.evaluation is None
    # The log, and what was there before.
    assert sorted(
        path.name for path in desk.directory.rglob("*") if path.is_file()
    ) == [
        desk.sealed.name,
        "rita.jsonl",
    ]


def test_the_model_is_evaluated_on_the_records_that_the_plan_pins(
    evaluating: Federation, tmp_path: Path, run: Run
) -> None:
    desk = desk_of(evaluating, tmp_path, run)
    desk.seal_model()
    source = clouds(seed=3, features=FEATURES, classes=CLASSES)
    evaluation = desk.receive(source=source).evaluation
    assert evaluation is not None
    assert evaluation.examples == 48
    again = desk.receive(source=source).evaluation
    assert again == evaluation
    events = read_events(desk.directory / "logs" / "rita.jsonl")
    assert [event["event"] for event in events] == [
        "model-opened",
        "model-evaluated",
    ] * 2
    assert events[1]["metrics"] == {
        name: value / 48 for name, value in evaluation.sums.items()
    }


def test_it_is_evaluated_exactly_when_the_plan_pins_records(
    desk: Receiving, evaluating: Federation
) -> None:
    desk.seal_model()
    source = clouds(seed=3, features=FEATURES, classes=CLASSES)
    with pytest.raises(RuntimeError):
        desk.receive(source=source)
    pinned = replace(desk, federation=evaluating)
    with pytest.raises(RuntimeError):
        pinned.receive()


def test_a_model_that_the_log_does_not_name_meets_no_records(
    evaluating: Federation, tmp_path: Path, run: Run
) -> None:
    """A host that could choose models would read the records off the metrics."""
    desk = desk_of(evaluating, tmp_path, run)
    desk.seal_model()
    source = clouds(seed=3, features=FEATURES, classes=CLASSES)
    recorded = desk.copy()
    # It knows rita's recipient, and all that the server would say of the model.
    desk.seal_model(model=TASK.initial_model(seed=6))
    error = desk.refusal(source=source, sealed=recorded)
    assert isinstance(error, VerificationError)
    assert error.code == "audit-model"
    unnamed = SealedCopy(path=desk.sealed, recorded=None)
    with pytest.raises(RuntimeError):
        desk.receive(source=source, sealed=unnamed)
    assert read_events(desk.directory / "logs" / "rita.jsonl") == []


def test_records_are_held_out_whatever_else_is_sealed_with_them(
    evaluating: Federation, tmp_path: Path, run: Run
) -> None:
    desk = desk_of(evaluating, tmp_path, run)
    desk.seal_model()
    for train in (0, 8):
        sealed = desk.seal_records(f"{train}.sealed", train=train, held_out=40)
        unopened = read_sealed_data(sealed.path)
        source = unopened.open(desk.data_key, schema=TASK.schema())
        evaluation = desk.receive(source=source).evaluation
        assert evaluation is not None
        assert evaluation.examples == 40
    sealed = desk.seal_records("none.sealed", train=8, held_out=0)
    source = read_sealed_data(sealed.path).open(desk.data_key, schema=TASK.schema())
    assert desk.refusal(source=source).code == "data-empty"


def test_a_model_that_meets_no_records_needs_no_log(desk: Receiving) -> None:
    desk.seal_model()
    unnamed = SealedCopy(path=desk.sealed, recorded=None)
    assert desk.receive(sealed=unnamed).evaluation is None


def test_neither_key_nor_parameter_is_in_log_or_repr(desk: Receiving) -> None:
    desk.seal_model()
    received = desk.receive()
    text = (desk.directory / "logs" / "rita.jsonl").read_text() + repr(received)
    assert desk.identity not in text
    assert desk.identity[16:40] not in text
    assert "model=" not in repr(received)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", "blobs/b"),
        ("plan", 64 * "0"),
        ("rounds", "11"),
        ("rounds", " 12"),
        ("simulated", "false"),
        ("run", None),
        ("plan", None),
        ("rounds", None),
        ("simulated", None),
    ],
)
def test_another_runs_model_is_refused(
    desk: Receiving, name: str, value: str | None
) -> None:
    metadata = desk.metadata()
    if value is None:
        del metadata[name]
    else:
        metadata[name] = value
    desk.seal_model(metadata=metadata)
    error = desk.refusal()
    assert isinstance(error, VerificationError)
    assert error.code == "model-foreign"
    assert repr(name) in error.what


def test_a_model_for_others_does_not_open(desk: Receiving) -> None:
    desk.seal_model(recipients=(new_identity()[1],))
    error = desk.refusal()
    assert isinstance(error, StorageError)
    assert error.code == "model-not-for-identity"


def test_nobody_elses_identity_opens_it(desk: Receiving) -> None:
    desk.seal_model()
    error = desk.refusal(keys=vault(new_identity()[0]))
    assert error.code == "model-not-for-identity"


def test_a_node_without_the_key_opens_nothing(desk: Receiving) -> None:
    desk.seal_model()
    error = desk.refusal(keys=Keys({"data": desk.data_key}))
    assert error.code == "key-missing"


@pytest.mark.parametrize("identity", ["", "AGE-SECRET-KEY-1CANARY", "ñ" * 40])
def test_what_is_no_identity_is_refused_and_not_shown(
    desk: Receiving, identity: str
) -> None:
    desk.seal_model()
    error = desk.refusal(keys=vault(identity))
    assert error.code == "identity-invalid"
    assert not identity or identity not in str(error)


def test_an_altered_or_missing_model_is_refused(desk: Receiving) -> None:
    assert desk.refusal().code == "model-missing"
    desk.seal_model()
    sealed = bytearray(desk.sealed.read_bytes())
    sealed[-1] ^= 1
    desk.sealed.write_bytes(sealed)
    assert desk.refusal().code == "model-damaged"


def test_arrays_of_another_task_are_refused(desk: Receiving) -> None:
    desk.seal_model(arrays={"weights": np.zeros(3)})
    assert isinstance(desk.refusal(), StorageError)


def test_a_task_that_fails_says_nothing_of_the_model_but_its_line(
    desk: Receiving,
) -> None:
    class Broken(Softmax):
        @override
        def load_exported(self, arrays: Mapping[str, np.ndarray]) -> ModelBuffer:
            raise StopIteration(str(arrays["weights"].sum()))

    desk.seal_model()
    error = desk.refusal(task=Broken(FEATURES, CLASSES))
    assert error.code == "task-failed"
    assert "loading the model" in error.what
