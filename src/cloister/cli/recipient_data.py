"""The records that a recipient's node predicts on: any that its party sealed.

The plan does not pin them, so the host chooses among them. It learns nothing by that:
what the node makes of them is sealed to whom the plan names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.cli.party_data import check_sealed, schema_of
from cloister.cli.places import Place
from cloister.errors import ConfigError, StorageError
from cloister.federation.task import Task
from cloister.storage.keys import KeySource
from cloister.storage.records import Schema
from cloister.storage.sealed_data import UnopenedData, read_sealed_data
from cloister.storage.sealed_data_set import SealedDataSet


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionData:
    """The records to predict on, before they are opened.

    Attributes:
        unopened: They, as the party sealed them.
        schema: The task's.
    """

    unopened: UnopenedData
    schema: Schema

    def open(self, keys: KeySource) -> SealedDataSet:
        """Returns the records.

        Raises:
            ConfigError: If the node has no data key.
            StorageError: If they do not open with it, or are not the task's.
        """
        return self.unopened.open(keys.key("data"), schema=self.schema)


def check_predicts(place: Place) -> Place:
    """Returns a recipient's place, if the plan has its node predict.

    Raises:
        ConfigError: If the plan does not say to whom predictions are sealed
            (``predictions-unplanned``).
    """
    if place.party.predictions_to is None:
        raise ConfigError(
            f"the plan has {place.party.name!r} predict nothing",
            code="predictions-unplanned",
            expected="'predictions_to' and 'data_key' of the party",
            got="no predictions_to",
            remedy="Have all parties sign a plan that says who reads the predictions.",
        )
    return place


def check_evaluates(place: Place) -> Place:
    """Returns a recipient's place, if the plan has its node evaluate.

    Raises:
        ConfigError: If the plan pins no records of it (``evaluation-unplanned``).
    """
    if place.party.data is None:
        raise ConfigError(
            f"the plan has {place.party.name!r} evaluate on nothing",
            code="evaluation-unplanned",
            expected="'data' of the party",
            got="none",
            remedy="Have all parties sign a plan that pins the records.",
        )
    return place


def find_prediction_data(place: Place, task: Task, path: Path) -> PredictionData:
    """Returns a recipient's records, after checking that its party sealed them.

    1. The plan says who reads the predictions, and under which key records are sealed.
    2. The file is a sealed data set, signed by the owner that it names.
    3. That owner is the node's party, and the data key is the plan's.
    4. There are held-out records.

    Args:
        place: Of the recipient's node.
        task: The plan's task.
        path: The sealed data set.

    Raises:
        ConfigError: If the plan has this party predict nothing.
        StorageError: If the file is no sealed data set, somebody else's or under
            another key (``data-foreign``, ``data-key-differs``), or has nothing to
            predict on (``data-empty``).
    """
    # Step 1
    party = check_predicts(place).party
    if party.data_key is None:
        raise RuntimeError("a plan has no predictions without a data key")
    schema = schema_of(place, task)
    # Step 2
    unopened = read_sealed_data(check_sealed(path))
    # Step 3
    unopened.check_owner(owner=party.key, key=party.data_key)
    # Step 4
    if not unopened.manifest.held_out:
        raise StorageError(
            f"{path} has no held-out records",
            code="data-empty",
            expected="records of the split held-out: those are predicted on",
            got=f"{unopened.manifest.train} training records",
            remedy="Seal them with --held-out all.",
        )
    return PredictionData(unopened=unopened, schema=schema)
