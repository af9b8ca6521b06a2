from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import START, Federation
from tests.support.keyrings import new_identity_file
from tests.support.places import custodian_of, key_path
from tests.support.plan_tree import plan_tree, policy, put, toml_of
from tests.support.recorded_log import RecordedLog

from cloister.cli.custodian_files import IDENTITY_FILE
from cloister.cli.custodians import (
    build_custodian,
    look_at_plans,
    open_keys,
    open_register,
)
from cloister.cli.places import CustodianPlace, read_custodian_place
from cloister.cli.signing import read_plan_file, sign
from cloister.custody.party_key import read_party_key
from cloister.errors import ConfigError, StorageError
from cloister.plan.keys import format_party_key
from cloister.plan.policy_file import format_policy
from cloister.storage.keys import key_id

LOG = RecordedLog().logger()
OTHERS = (f"ed25519:{1:064x}", f"ed25519:{2:064x}")


@pytest.fixture
def alice(federation: Federation, tmp_path: Path) -> CustodianPlace:
    return custodian_of(federation, tmp_path, "alice")


def change(place: CustodianPlace, old: str, new: str) -> CustodianPlace:
    file = place.directory / "custodian.toml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    return read_custodian_place(file)


def test_a_new_custodian_is_its_partys_and_nobody_elses_to_read(
    federation: Federation, alice: CustodianPlace
) -> None:
    with open_register(alice) as register:
        custodian = build_custodian(alice, register, log=LOG)
        assert register.plans() == ()
    assert custodian.party == "alice"
    assert custodian.appraiser.root == federation.root.trust_root
    assert custodian.local_policy is None
    assert custodian.warrant_life == timedelta(days=1)
    identity = alice.directory / IDENTITY_FILE
    for path in (alice.key_path, alice.register_path, alice.keyring_path, identity):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert repr(custodian.key) not in repr(custodian)


def test_what_opens_the_keyring_is_needed_at_the_start(alice: CustodianPlace) -> None:
    identity = alice.directory / IDENTITY_FILE
    with open_register(alice) as register:
        name = open_keys(alice, register).add("data", label="data", at=START)
        keys = build_custodian(alice, register, log=LOG).keys
        assert key_id("data", keys.secret(name, kind="data")) == name
        identity.unlink()
        for wanted in ("identity-missing", "keyring-locked"):
            with pytest.raises(ConfigError) as caught:
                build_custodian(alice, register, log=LOG)
            assert caught.value.code == wanted
            new_identity_file(identity)


def test_a_passphrase_is_read_from_the_file_that_is_named(
    alice: CustodianPlace,
) -> None:
    named = change(alice, f'identity = "{IDENTITY_FILE}"', 'passphrase_file = "secret"')
    with open_register(named) as register:
        with pytest.raises(ConfigError) as caught:
            open_keys(named, register)
        assert caught.value.code == "passphrase-unusable"
        (alice.directory / "secret").touch(mode=0o600)
        (alice.directory / "secret").write_text("six words chosen by dice\n")
        # It is another lock than the one the keyring was made with.
        with pytest.raises(ConfigError) as caught:
            open_keys(named, register)
        assert caught.value.code == "keyring-locked"


def test_without_either_a_person_is_asked_and_nobody_else(
    alice: CustodianPlace,
) -> None:
    asked = change(alice, f'identity = "{IDENTITY_FILE}"', "")
    with open_register(asked) as register, pytest.raises(ConfigError) as caught:
        open_keys(asked, register)
    assert caught.value.code == "nobody-to-ask"


def test_a_directory_stands_for_the_file_in_it(alice: CustodianPlace) -> None:
    assert read_custodian_place(alice.directory) == alice


def test_a_register_of_another_party_is_refused(
    federation: Federation, alice: CustodianPlace, tmp_path: Path
) -> None:
    bob = custodian_of(federation, tmp_path, "bob")
    taken = change(alice, "custodian.sqlite", str(bob.register_path))
    with pytest.raises(ConfigError) as caught:
        open_register(taken)
    assert caught.value.code == "custodian-foreign"


def test_a_custodian_never_begins_with_an_empty_register_of_its_own_making(
    alice: CustodianPlace,
) -> None:
    """It would have forgotten every epoch."""
    alice.register_path.unlink()
    with pytest.raises(StorageError):
        open_register(alice)
    assert not alice.register_path.exists()


def test_a_partys_own_policy_stands_beside_the_plans(
    federation: Federation, alice: CustodianPlace
) -> None:
    wanted = federation.plan.policy.server
    (alice.directory / "policy.toml").write_text(format_policy(wanted))
    strict = change(alice, "# policy", "policy")
    with open_register(strict) as register:
        assert build_custodian(strict, register, log=LOG).local_policy == wanted


@pytest.mark.parametrize("listed_by", ["nobody", "plan", "policy"])
def test_plans_in_force_that_leave_the_machines_open_are_warned_of_at_the_start(
    federation: Federation, alice: CustodianPlace, tmp_path: Path, listed_by: str
) -> None:
    key = format_party_key(read_party_key(key_path(tmp_path, "alice")))
    root = federation.root.trust_root.name
    keys = {"aggregator": OTHERS[0], "alice": key, "bob": OTHERS[1]}
    tree = plan_tree(root=root, keys=keys)
    place = alice
    if listed_by == "plan":
        put(tree, ("party", 1, "platforms"), [32 * "1"])
    if listed_by == "policy":
        local = msgspec.structs.replace(
            federation.plan.policy_for("worker"), platforms=(32 * "1",)
        )
        (alice.directory / "policy.toml").write_text(format_policy(local))
        place = change(alice, "# policy", "policy")
    path = tmp_path / "plan.toml"
    path.write_bytes(toml_of(tree))
    sign(read_plan_file(path), [place], at=START)
    log = RecordedLog()
    with open_register(place) as register:
        custodian = build_custodian(place, register, log=log.logger())
        look_at_plans(custodian)
        look_at_plans(custodian)
    told = [line["event"] for line in log.events]
    assert told == (["platforms-not-pinned"] if listed_by == "nobody" else [])


def test_the_signed_plans_say_that_a_root_is_preproduction(
    federation: Federation, alice: CustodianPlace, tmp_path: Path
) -> None:
    name = f"preproduction:sha256:{federation.root.trust_root.sha256}"
    key = format_party_key(read_party_key(key_path(tmp_path, "alice")))
    keys = {
        "aggregator": f"ed25519:{1:064x}",
        "alice": key,
        "bob": f"ed25519:{2:064x}",
    }
    tree = plan_tree(root=name, keys=keys)
    for role in ("server", "worker"):
        put(tree, ("policy", role), {**policy(role, name), "platforms": "any"})
    path = tmp_path / "plan.toml"
    path.write_bytes(toml_of(tree))
    sign(read_plan_file(path), [alice], at=START)
    with open_register(alice) as register:
        assert (
            build_custodian(alice, register, log=LOG).appraiser.root.kind
            == "preproduction"
        )
