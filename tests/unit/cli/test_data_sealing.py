"""Records sealed with what a party's custodian keeps: which key, whose signature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.support.federation_in_memory import START, Federation
from tests.support.places import custodian_of
from tests.support.sealed_sets import same_records, some_stream

from cloister.cli.custodians import open_keys, open_register
from cloister.cli.data_sealing import data_key, owner_of, seal_for
from cloister.cli.places import CustodianPlace
from cloister.errors import CloisterError, ConfigError, VerificationError
from cloister.storage.keys import KeyKind, key_id
from cloister.storage.sealed_data import read_sealed_data


@pytest.fixture
def place(federation: Federation, tmp_path: Path) -> CustodianPlace:
    """A custodian without keys."""
    return custodian_of(federation, tmp_path, "alice")


def add(place: CustodianPlace, label: str, *, kind: KeyKind = "data") -> str:
    with open_register(place) as register:
        return open_keys(place, register).add(kind, label=label, at=START)


def refusal(place: CustodianPlace, name: str | None = None) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        data_key(place, name)
    return caught.value


def test_records_are_sealed_with_the_partys_keys(place: CustodianPlace) -> None:
    name, path, stream = add(place, "scans"), place.directory / "data", some_stream()
    told: list[int] = []
    sealed = seal_for(place, stream, path=path, on_records=told.append)
    assert (sealed.manifest.key, sealed.manifest.owner) == (name, owner_of(place))
    assert told[-1] == sealed.manifest.total == 11
    opened = read_sealed_data(path).open(data_key(place, name), schema=stream.schema)
    batch = opened.split("train").read(np.arange(7))
    assert same_records(batch, stream.splits["train"], list(range(7)))


def test_a_key_is_named_by_its_label_or_as_plans_do(place: CustodianPlace) -> None:
    scans, notes = add(place, "scans"), add(place, "notes")
    add(place, "scans", kind="state-share")
    for name, wanted in (
        ("scans", scans),
        ("notes", notes),
        (scans, scans),
        (notes, notes),
    ):
        assert key_id("data", data_key(place, name)) == wanted


def test_the_only_data_key_need_not_be_named(place: CustodianPlace) -> None:
    add(place, "share", kind="state-share")
    error = refusal(place)
    assert isinstance(error, ConfigError)
    assert error.code == "data-key-missing"
    assert "keys add DIR data" in error.remedy
    only = add(place, "scans")
    assert key_id("data", data_key(place, None)) == only
    add(place, "notes")
    error = refusal(place)
    assert error.code == "data-key-unnamed"
    assert "notes (sha256:" in error.got
    assert f"scans ({only})" in error.got


def test_a_key_that_was_replaced_is_none_to_seal_with_by_its_label(
    place: CustodianPlace,
) -> None:
    """By its name it is: what was sealed under it must open."""
    old = add(place, "scans")
    with open_register(place) as register:
        new = open_keys(place, register).rotate(old, at=START)
    for name, wanted in (("scans", new), (None, new), (old, old)):
        assert key_id("data", data_key(place, name)) == wanted


def test_a_key_that_is_not_there_is_none(place: CustodianPlace) -> None:
    """A secret that is given in a name's place is not repeated."""
    share = add(place, "share", kind="state-share")
    add(place, "scans")
    for name in ("share", 64 * "a"):
        error = refusal(place, name)
        assert isinstance(error, ConfigError)
        assert error.code == "data-key-unknown"
        assert name not in (error.what + error.got)
    for name in (share, "sha256:" + 64 * "0"):
        error = refusal(place, name)
        assert isinstance(error, VerificationError)
        assert error.code == "key-unknown"


def test_a_revoked_key_seals_and_opens_nothing(place: CustodianPlace) -> None:
    name = add(place, "scans")
    with open_register(place) as register:
        open_keys(place, register).revoke(name, at=START)
    assert refusal(place, name).code == "key-revoked"
    assert refusal(place).code == "data-key-missing"
    path = place.directory / "data"
    with pytest.raises(ConfigError):
        seal_for(place, some_stream(), path=path)
    assert not path.exists()
