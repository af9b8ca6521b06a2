from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.plan_tree import Path as Place
from tests.support.plan_tree import Tree, Value, leaves, put, take, toml_of

from cloister.errors import ConfigError
from cloister.plan.custodian_site import read_custodian_site

Write = Callable[[Tree], Path]

REQUIRED = ["party", "address", "key", "database", "keyring", "logs", "collateral"]


def custodian_tree() -> Tree:
    return {
        "party": "alice",
        "address": "custodian.example:7003",
        "key": "party-key.pem",
        "database": "custodian.sqlite",
        "logs": "logs",
        "warrant_hours": 2.5,
        "policy": "policy.toml",
        "keyring": {"file": "keyring.age", "identity": "/media/token/identity.txt"},
        "collateral": {
            "directory": "../../collateral",
            "trust_root": "../../trust-root.der",
        },
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_custodian(tree: Tree) -> Path:
        path = tmp_path / "custodian.toml"
        path.write_bytes(toml_of(tree))
        return path

    return write_custodian


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_custodian_site(path)
    return caught.value


def test_a_whole_file_reads_as_written(write: Write) -> None:
    site = read_custodian_site(write(custodian_tree()))
    assert site.party == "alice"
    assert site.address == "custodian.example:7003"
    assert (site.key, site.database, site.logs, site.policy) == (
        "party-key.pem",
        "custodian.sqlite",
        "logs",
        "policy.toml",
    )
    assert site.warrant_hours == 2.5
    assert site.collateral.trust_root == "../../trust-root.der"
    assert (site.keyring.file, site.keyring.identity, site.keyring.passphrase_file) == (
        "keyring.age",
        "/media/token/identity.txt",
        None,
    )


def test_a_keyring_is_opened_in_one_way_or_by_a_person(write: Write) -> None:
    place = "/run/secrets/keyring"
    tree = put(custodian_tree(), ("keyring", "passphrase_file"), place)
    error = refusal(write(tree))
    assert error.code == "keyring-lock"
    by_file = read_custodian_site(write(take(tree, ("keyring", "identity"))))
    assert by_file.keyring.passphrase_file == place
    person = read_custodian_site(write(take(custodian_tree(), ("keyring", "identity"))))
    assert (person.keyring.identity, person.keyring.passphrase_file) == (None, None)
    assert "`file`" in refusal(write(take(custodian_tree(), ("keyring", "file")))).what


def test_a_warrant_lasts_a_day_and_no_policy_is_added_unless_said(write: Write) -> None:
    tree = take(take(custodian_tree(), ("warrant_hours",)), ("policy",))
    site = read_custodian_site(write(tree))
    assert site.warrant_hours == 24
    assert site.policy is None


@pytest.mark.parametrize("key", REQUIRED)
def test_everything_else_is_required(write: Write, key: str) -> None:
    error = refusal(write(take(custodian_tree(), (key,))))
    assert f"`{key}`" in error.what


@pytest.mark.parametrize("place", [(), ("collateral",), ("keyring",)])
def test_an_unknown_key_is_named_with_its_file(write: Write, place: Place) -> None:
    path = write(put(custodian_tree(), (*place, "surplus"), 1))
    error = refusal(path)
    assert error.code == "key-unknown"
    assert "'surplus'" in error.what
    assert str(path) in error.what


@pytest.mark.parametrize("place", [path for path, _ in leaves(custodian_tree())])
@pytest.mark.parametrize("wrong", [[1], {"a": 1}, True])
def test_a_value_of_a_wrong_type_is_named(
    write: Write, place: Place, wrong: Value
) -> None:
    error = refusal(write(put(custodian_tree(), place, wrong)))
    assert re.search(r"\.".join(map(str, place)), error.what)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("party", "Alice"),
        ("party", "alice\n"),
        ("key", ""),
        ("database", "a\0b"),
        ("logs", "l" * 4097),
        ("policy", ""),
        ("warrant_hours", 0),
        ("warrant_hours", -1),
        ("warrant_hours", 168.001),
        ("warrant_hours", float("nan")),
        ("warrant_hours", float("inf")),
    ],
)
def test_a_value_out_of_its_range_is_refused(
    write: Write, key: str, value: Value
) -> None:
    assert key in refusal(write(put(custodian_tree(), (key,), value))).what


def test_a_warrant_lasts_a_minute_at_least(write: Write) -> None:
    error = refusal(write(put(custodian_tree(), ("warrant_hours",), 59.9 / 3600)))
    assert error.code == "warrant-life"
    assert "59.9 seconds" in error.got
    minute = 1 / 60
    path = write(put(custodian_tree(), ("warrant_hours",), minute))
    assert read_custodian_site(path).warrant_hours == minute


def test_a_warrant_lasts_a_week_at_most(write: Write) -> None:
    path = write(put(custodian_tree(), ("warrant_hours",), 168))
    assert read_custodian_site(path).warrant_hours == 168


@pytest.mark.parametrize("address", ["", "host", "host:0", "host:65536", "a b:80"])
def test_a_custodian_listens_at_a_well_formed_address(
    write: Write, address: str
) -> None:
    error = refusal(write(put(custodian_tree(), ("address",), address)))
    assert error.code == "address-invalid"


def test_collateral_has_one_source(write: Write) -> None:
    tree = put(custodian_tree(), ("collateral", "pccs"), "intel")
    assert refusal(write(tree)).code == "collateral-source"
    assert refusal(write(put(tree, ("collateral",), {}))).code == "collateral-source"


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "custodian.toml"
    error = refusal(path)
    assert error.code == "file-unreadable"
    assert str(path) in error.expected
