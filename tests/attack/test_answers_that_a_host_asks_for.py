"""A host owns the disk of a recipient's node: model, log, records, and what comes back.

It wants to read the party's records off answers about models of its choice, or the
model off answers about records of its choice. Each story ends with what is left: no
predictions, no new file, and nothing in the node's log but that a model was opened.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.made_audit import ROUNDS, AuditedRun
from tests.support.places import place_of
from tests.support.plan_tree import Tree, put
from tests.support.recipient_desk import (
    ASKER,
    TASK,
    Desk,
    predicting_federation,
)
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.cli.recipient_data import find_prediction_data
from cloister.cli.sealed_copies import find_copy
from cloister.errors import CloisterError, StorageError, VerificationError
from cloister.federation.predictions import seal_predictions
from cloister.storage.keys import Secret, new_key
from cloister.storage.model_vault import SealedModel, open_model

RECORDS = "records.sealed"
OUT = "predictions.safetensors.age"


def three_rounds(tree: Tree) -> Tree:
    put(tree, ("training", "rounds"), ROUNDS)
    return put(tree, ("training", "schedule"), {"name": "constant"})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Secret]:
    directory = tmp_path_factory.mktemp("rita")
    return predicting_federation(directory, change=three_rounds)


class Host(Desk):
    """The host of rita's node, with all that an honest run left there."""

    def honest_run(self) -> None:
        """Leaves the model, the log that names it, and rita's records."""
        run = AuditedRun(self.federation, self.directory / "audit.jsonl")
        run.whole(model=self.seal_model())
        self.seal_records(RECORDS)

    def start_node(self, run: Run, log: RecordedLog) -> SealedModel:
        """Starts rita's node, which predicts if everything is as it should be."""
        place = place_of(self.federation.plan, self.directory, party="rita")
        sealed = find_copy(place, self.sealed, for_records=True)
        found = find_prediction_data(place, TASK, self.directory / RECORDS)
        return run(
            seal_predictions(
                self.federation.node("rita"),
                TASK,
                sealed=sealed,
                keys=self.keys,
                source=found.open(self.keys),
                path=self.directory / OUT,
                log=log.logger(),
            )
        )

    def refusal(self, run: Run) -> CloisterError:
        """Returns why the node gives no answer."""
        before, log = self.files(), RecordedLog()
        with pytest.raises(CloisterError) as caught:
            self.start_node(run, log)
        assert self.files() == before
        assert log.events == []
        return caught.value


@pytest.fixture
def host(made: tuple[Federation, Secret], tmp_path: Path) -> Host:
    federation, key = made
    host = Host(federation=federation, data_key=key, directory=tmp_path)
    host.honest_run()
    return host


def test_an_honest_host_brings_answers_that_it_cannot_read(
    host: Host, run: Run
) -> None:
    log = RecordedLog()
    sealed = host.start_node(run, log)
    assert open_model(sealed.path, identity=ASKER).arrays["label"].shape == (40,)
    assert [event["event"] for event in log.events] == [
        "model-opened",
        "predictions-sealed",
    ]


def test_a_model_of_its_own_making_meets_no_records(host: Host, run: Run) -> None:
    """It knows rita's recipient and all that the server would say of the model."""
    host.seal_model(model=TASK.initial_model(seed=6))
    error = host.refusal(run)
    assert isinstance(error, VerificationError)
    assert error.code == "audit-model"


def test_nor_with_a_log_of_its_own_parties_beside_it(
    host: Host, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    theirs, _ = predicting_federation(
        tmp_path_factory.mktemp("theirs"), change=three_rounds
    )
    log = host.directory / "audit.jsonl"
    log.unlink()
    model = host.seal_model(model=TASK.initial_model(seed=6))
    AuditedRun(theirs, log).whole(model=model)
    error = host.refusal(run)
    assert isinstance(error, VerificationError)
    assert error.code.startswith("audit-")


def test_nor_with_a_log_that_is_cut_before_its_end(host: Host, run: Run) -> None:
    log = host.directory / "audit.jsonl"
    *lines, _ = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines))
    assert host.refusal(run).code == "audit-model-unnamed"
    log.unlink()
    assert host.refusal(run).code == "audit-missing"


@pytest.mark.parametrize("whose", ["alice", "mallory"])
def test_records_of_others_get_no_answers(host: Host, run: Run, whose: str) -> None:
    """Under their own keys; rita's node could not open them, and does not try to."""
    keys = host.federation.keys
    (host.directory / RECORDS).unlink()
    host.seal_records(
        RECORDS, owner=keys["alice" if whose == "alice" else "bob"], key=new_key()
    )
    error = host.refusal(run)
    assert isinstance(error, StorageError)
    assert error.code == "data-foreign"


def test_records_under_a_key_that_the_plan_does_not_name_get_none(
    host: Host, run: Run
) -> None:
    (host.directory / RECORDS).unlink()
    host.seal_records(RECORDS, key=new_key())
    assert host.refusal(run).code == "data-key-differs"


def test_records_of_two_sets_are_not_mixed(host: Host, run: Run) -> None:
    """Both are rita's, under one key; a record of one lies in the other's place."""
    host.seal_records("other.sealed")
    ours, theirs = host.directory / RECORDS, host.directory / "other.sealed"
    content, half = ours.read_bytes(), ours.stat().st_size // 2
    first, second = content[:half], theirs.read_bytes()[half:]
    shutil.copyfile(theirs, ours)
    ours.write_bytes(first + second)
    error = host.refusal(run)
    assert isinstance(error, StorageError)
    assert error.code == "data-damaged"


def test_one_changed_bit_of_a_record_ends_all_answers(host: Host, run: Run) -> None:
    path = host.directory / RECORDS
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    assert host.refusal(run).code == "data-damaged"
