from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from examples.softmax.task import Softmax
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import CLASSES, FEATURES, put
from tests.support.recorded_log import read_events
from tests.support.records_in_memory import clouds
from tests.support.running import Run
from typing_extensions import override

from cloister.cli.journal import open_journal
from cloister.errors import (
    CloisterError,
    ConfigError,
    StorageError,
    VerificationError,
)
from cloister.federation.layout import ModelBuffer
from cloister.federation.recipient import ReceivedModel, receive_model
from cloister.federation.task import Task
from cloister.plan.plan import plan_hash
from cloister.storage.keys import KeyKind, KeySource, Secret
from cloister.storage.model_vault import new_identity, seal_model
from cloister.storage.records import DataSource


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


@dataclass(frozen=True, slots=True)
class OneKey(KeySource):
    """A node that was released one key."""

    identity: str
    kind: KeyKind = "vault"

    @override
    def key(self, kind: KeyKind) -> Secret:
        if kind != self.kind:
            raise ConfigError("this node has no such key", code="key-missing")
        return Secret(self.identity.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """A recipient and a model that was sealed for it."""

    federation: Federation
    directory: Path
    run: Run

    @property
    def task(self) -> Softmax:
        return Softmax(FEATURES, CLASSES)

    @property
    def sealed(self) -> Path:
        return self.directory / "model.safetensors.age"

    @property
    def model(self) -> ModelBuffer:
        return self.task.initial_model(seed=5)

    @property
    def keys(self) -> OneKey:
        return OneKey(self.federation.vaults["rita"])

    def metadata(self) -> dict[str, str]:
        plan = self.federation.plan
        return {
            "run": plan.run_id,
            "plan": plan_hash(plan).hex(),
            "rounds": str(plan.training.rounds),
            "simulated": "true",
            "metric.accuracy": "0.5",
        }

    def seal(
        self,
        *,
        metadata: Mapping[str, str] | None = None,
        arrays: Mapping[str, np.ndarray] | None = None,
        recipients: tuple[str, ...] | None = None,
    ) -> None:
        seal_model(
            self.task.export(self.model) if arrays is None else arrays,
            metadata=self.metadata() if metadata is None else metadata,
            recipients=recipients or self.federation.plan.recipients,
            path=self.sealed,
        )

    def receive(
        self,
        *,
        keys: KeySource | None = None,
        source: DataSource | None = None,
        task: Task | None = None,
    ) -> ReceivedModel:
        with open_journal(self.directory, party="rita", as_json=False) as log:
            return self.run(
                receive_model(
                    self.federation.node("rita"),
                    task or self.task,
                    sealed=self.sealed,
                    keys=keys or self.keys,
                    source=source,
                    log=log,
                )
            )

    def refusal(self, **given: object) -> CloisterError:
        with pytest.raises(CloisterError) as caught:
            self.receive(**given)  # type: ignore[arg-type]
        return caught.value


@pytest.fixture
def desk(federation: Federation, tmp_path: Path, run: Run) -> Desk:
    return Desk(federation=federation, directory=tmp_path, run=run)


def test_a_recipient_opens_the_model_in_its_memory(desk: Desk) -> None:
    desk.seal()
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
    desk = Desk(federation=evaluating, directory=tmp_path, run=run)
    desk.seal()
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
    desk: Desk, evaluating: Federation
) -> None:
    desk.seal()
    source = clouds(seed=3, features=FEATURES, classes=CLASSES)
    with pytest.raises(RuntimeError):
        desk.receive(source=source)
    pinned = replace(desk, federation=evaluating)
    with pytest.raises(RuntimeError):
        pinned.receive()


def test_neither_key_nor_parameter_is_in_log_or_repr(desk: Desk) -> None:
    desk.seal()
    received = desk.receive()
    text = (desk.directory / "logs" / "rita.jsonl").read_text() + repr(received)
    assert desk.keys.identity not in text
    assert desk.keys.identity[16:40] not in text
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
    desk: Desk, name: str, value: str | None
) -> None:
    metadata = desk.metadata()
    if value is None:
        del metadata[name]
    else:
        metadata[name] = value
    desk.seal(metadata=metadata)
    error = desk.refusal()
    assert isinstance(error, VerificationError)
    assert error.code == "model-foreign"
    assert repr(name) in error.what


def test_a_model_for_others_does_not_open(desk: Desk) -> None:
    desk.seal(recipients=(new_identity()[1],))
    error = desk.refusal()
    assert isinstance(error, StorageError)
    assert error.code == "model-not-for-identity"


def test_nobody_elses_identity_opens_it(desk: Desk) -> None:
    desk.seal()
    error = desk.refusal(keys=OneKey(new_identity()[0]))
    assert error.code == "model-not-for-identity"


def test_a_node_without_the_key_opens_nothing(desk: Desk) -> None:
    desk.seal()
    error = desk.refusal(keys=OneKey(desk.keys.identity, kind="data"))
    assert error.code == "key-missing"


@pytest.mark.parametrize("identity", ["", "AGE-SECRET-KEY-1CANARY", "ñ" * 40])
def test_what_is_no_identity_is_refused_and_not_shown(
    desk: Desk, identity: str
) -> None:
    desk.seal()
    error = desk.refusal(keys=OneKey(identity))
    assert error.code == "identity-invalid"
    assert not identity or identity not in str(error)


def test_an_altered_or_missing_model_is_refused(desk: Desk) -> None:
    assert desk.refusal().code == "model-missing"
    desk.seal()
    sealed = bytearray(desk.sealed.read_bytes())
    sealed[-1] ^= 1
    desk.sealed.write_bytes(sealed)
    assert desk.refusal().code == "model-damaged"


def test_arrays_of_another_task_are_refused(desk: Desk) -> None:
    desk.seal(arrays={"weights": np.zeros(3)})
    assert isinstance(desk.refusal(), StorageError)


def test_a_task_that_fails_says_nothing_of_the_model_but_its_line(desk: Desk) -> None:
    class Broken(Softmax):
        @override
        def load_exported(self, arrays: Mapping[str, np.ndarray]) -> ModelBuffer:
            raise StopIteration(str(arrays["weights"].sum()))

    desk.seal()
    error = desk.refusal(task=Broken(FEATURES, CLASSES))
    assert error.code == "task-failed"
    assert "loading the model" in error.what
