"""What a recipient's node predicts on: records that its own party sealed."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.federation_in_memory import Federation
from tests.support.places import place_of
from tests.support.plan_tree import CLASSES, FEATURES, add_recipient, plan_tree, toml_of
from tests.support.recipient_desk import TASK, Desk, Keys, predicting_federation

from cloister.cli.places import Place
from cloister.cli.recipient_data import (
    check_evaluates,
    check_predicts,
    find_prediction_data,
)
from cloister.errors import CloisterError, ConfigError, StorageError
from cloister.plan.plan import parse_plan
from cloister.storage.keys import Secret, new_key
from cloister.storage.records import Field, Schema

NAME = "records.sealed"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Secret]:
    return predicting_federation(tmp_path_factory.mktemp("rita"))


@pytest.fixture
def desk(made: tuple[Federation, Secret], tmp_path: Path) -> Desk:
    federation, key = made
    return Desk(federation=federation, data_key=key, directory=tmp_path)


def place(desk: Desk) -> Place:
    return place_of(desk.federation.plan, desk.directory, party="rita")


def refusal(desk: Desk) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        find_prediction_data(place(desk), TASK, desk.directory / NAME)
    return caught.value


def without_predictions(directory: Path) -> Place:
    plan = parse_plan(toml_of(add_recipient(plan_tree(), "rita")))
    return place_of(plan, directory, party="rita")


@pytest.mark.parametrize("train", [0, 8])
def test_whatever_the_party_sealed_under_its_data_key_is_predicted_on(
    desk: Desk, train: int
) -> None:
    sealed = desk.seal_records(NAME, train=train, held_out=9)
    found = find_prediction_data(place(desk), TASK, sealed.path)
    opened = found.open(desk.keys)
    assert opened.digest == sealed.digest
    assert len(opened.split("held-out")) == 9


def test_a_host_gets_no_answers_on_records_of_its_own(desk: Desk) -> None:
    """Nor on another party's: it has their sealed sets, and they their own keys."""
    mallory = Ed25519PrivateKey.generate()
    desk.seal_records(NAME, owner=mallory, key=new_key())
    error = refusal(desk)
    assert isinstance(error, StorageError)
    assert error.code == "data-foreign"
    assert error.expected == place(desk).party.key


def test_another_owners_name_on_a_right_key_does_not_help(desk: Desk) -> None:
    desk.seal_records(NAME, owner=desk.federation.keys["alice"])
    assert refusal(desk).code == "data-foreign"


def test_records_under_another_of_the_partys_keys_are_refused(desk: Desk) -> None:
    desk.seal_records(NAME, key=new_key())
    error = refusal(desk)
    assert error.code == "data-key-differs"
    assert error.expected == place(desk).party.data_key


def test_a_node_with_another_key_opens_nothing(desk: Desk) -> None:
    sealed = desk.seal_records(NAME)
    found = find_prediction_data(place(desk), TASK, sealed.path)
    with pytest.raises(StorageError) as caught:
        found.open(Keys({"data": new_key()}))
    assert caught.value.code == "data-key-differs"
    with pytest.raises(ConfigError) as missing:
        found.open(Keys({}))
    assert missing.value.code == "key-missing"


def test_records_of_another_form_are_not_the_tasks(desk: Desk) -> None:
    schema = Schema(
        fields=(
            Field(name="label", dtype="uint8", below=CLASSES + 1),
            Field(name="image", dtype="uint8", shape=(FEATURES,)),
        )
    )
    sealed = desk.seal_records(NAME, schema=schema)
    found = find_prediction_data(place(desk), TASK, sealed.path)
    with pytest.raises(StorageError) as caught:
        found.open(desk.keys)
    assert caught.value.code == "data-schema"


def test_without_held_out_records_there_is_nothing_to_predict_on(desk: Desk) -> None:
    desk.seal_records(NAME, train=8, held_out=0)
    error = refusal(desk)
    assert (error.code, error.got) == ("data-empty", "8 training records")
    assert "--held-out all" in error.remedy


def test_what_is_no_sealed_set_is_refused(desk: Desk) -> None:
    assert refusal(desk).code == "data-missing"
    path = desk.directory / NAME
    path.write_bytes(bytes(100))
    assert refusal(desk).code == "data-malformed"
    path.unlink()
    path.mkdir()
    assert refusal(desk).code == "data-not-sealed"


def test_a_plan_that_names_no_reader_has_nothing_predicted(
    desk: Desk, tmp_path: Path
) -> None:
    desk.seal_records(NAME)
    plain = without_predictions(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_prediction_data(plain, TASK, tmp_path / NAME)
    assert caught.value.code == "predictions-unplanned"
    with pytest.raises(ConfigError):
        check_predicts(plain)
    assert check_predicts(place(desk)).party.name == "rita"


def test_a_plan_that_pins_no_records_has_nothing_evaluated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_evaluates(without_predictions(tmp_path))
    assert caught.value.code == "evaluation-unplanned"
