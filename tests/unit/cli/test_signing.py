from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.federation_in_memory import START, Federation
from tests.support.places import custodian_of
from tests.support.plan_tree import Tree, plan_tree, put, toml_of
from tests.support.registers import shown_by

from cloister.cli.custodians import open_register
from cloister.cli.places import CustodianPlace
from cloister.cli.signing import (
    PlanFile,
    chosen_custodians,
    read_plan_file,
    sign,
    signatures,
    withdraw,
)
from cloister.custody.party_key import read_party_key
from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.plan.consent import check_consents
from cloister.plan.keys import format_party_key
from cloister.plan.plan import plan_hash
from cloister.ratls.identity import new_identity

PARTIES = ("aggregator", "alice", "bob")
LIFE = timedelta(hours=1)


@pytest.fixture
def places(federation: Federation, tmp_path: Path) -> dict[str, CustodianPlace]:
    directory = tmp_path / "custodians"
    directory.mkdir()
    return {it: custodian_of(federation, directory, it) for it in PARTIES}


@pytest.fixture
def write(
    federation: Federation, places: dict[str, CustodianPlace], tmp_path: Path
) -> Callable[..., PlanFile]:
    """Writes a plan with the custodians' keys, changed in one place."""

    def write_plan(change: Callable[[Tree], Tree] = lambda tree: tree) -> PlanFile:
        keys = {
            name: format_party_key(read_party_key(place.key_path))
            for name, place in places.items()
        }
        root = federation.root.trust_root.name
        path = tmp_path / "plan.toml"
        path.write_bytes(toml_of(change(plan_tree(root=root, keys=keys))))
        return read_plan_file(path)

    return write_plan


def test_a_plan_is_signed_by_one_after_the_other(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    file = write()
    assert signatures(file, at=START).missing == PARTIES
    found = sign(file, [places["alice"]], at=START)
    assert (found.signed, found.missing) == (("alice",), ("aggregator", "bob"))
    found = sign(file, [places["aggregator"], places["bob"]], at=START)
    assert found.missing == ()
    check_consents(file.plan, file.path, at=START)
    for place in places.values():
        with open_register(place) as register:
            assert register.plan(plan_hash(file.plan)) == file.plan


def test_all_here_are_those_beside_the_plan(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    found = chosen_custodians(write(), (), all_here=True)
    assert {it.party: it.key_path for it in found} == {
        name: place.key_path for name, place in places.items()
    }


def test_somebody_must_sign(write: Callable[..., PlanFile]) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen_custodians(write(), (), all_here=False)
    assert caught.value.code == "custodian-unnamed"


def test_a_custodian_that_could_never_verify_a_node_does_not_sign(
    federation: Federation, write: Callable[..., PlanFile], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    hardware = '[collateral]\npccs = "intel"\ncache = "collateral"\n'
    place = custodian_of(federation, elsewhere, "bob", collateral=hardware)
    with pytest.raises(ConfigError) as caught:
        chosen_custodians(write(), (place.directory,), all_here=False)
    assert caught.value.code == "root-missing"


def test_nobody_signs_when_one_key_is_not_the_plans(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    stranger = f"ed25519:{7:064x}"
    file = write(lambda tree: put(tree, ("party", 2, "key"), stranger))
    with pytest.raises(ConfigError) as caught:
        sign(file, list(places.values()), at=START)
    assert caught.value.code == "consent-key"
    assert not file.consents.exists()
    with open_register(places["alice"]) as register:
        assert register.plans() == ()


def test_a_consent_is_shown_only_where_the_custodian_remembers_it(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    """The run is another plan's already, and a node has trained under that."""
    first = write()
    sign(first, [places["bob"]], at=START)
    with open_register(places["bob"]) as register:
        shown = shown_by(first.plan, new_identity().tls_spki, party="bob")
        register.grant(shown, collateral=None, at=START, life=LIFE)
    second = write(lambda tree: put(tree, ("training", "seed"), 8))
    with pytest.raises(ConfigError) as caught:
        sign(second, [places["bob"]], at=START)
    assert caught.value.code == "run-taken"
    assert not second.consents.exists()


def test_a_withdrawn_plan_is_not_signed_and_can_be_signed_again(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    file, bob = write(), places["bob"]
    sign(file, list(places.values()), at=START)
    withdraw(file, bob, at=START)
    assert signatures(file, at=START).missing == ("bob",)
    with open_register(bob) as register, pytest.raises(VerificationError) as caught:
        register.plan(plan_hash(file.plan))
    assert caught.value.code == "plan-withdrawn"
    assert sign(file, [bob], at=START).missing == ()


def test_a_consent_that_does_not_hold_is_an_error_and_not_merely_missing(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    file = write()
    sign(file, list(places.values()), at=START)
    alice, bob = (file.consents / f"{name}.json" for name in ("alice", "bob"))
    alice.write_bytes(bob.read_bytes())
    with pytest.raises(VerificationError) as caught:
        signatures(file, at=START)
    assert caught.value.code == "consent-foreign"
    alice.write_bytes(b"{}")
    with pytest.raises(StorageError):
        signatures(file, at=START)


def test_another_partys_bad_consent_undoes_no_signature_and_is_told(
    write: Callable[..., PlanFile], places: dict[str, CustodianPlace]
) -> None:
    file = write()
    sign(file, [places["bob"]], at=START)
    (file.consents / "bob.json").write_bytes(b"{}")
    found = sign(file, [places["alice"]], at=START)
    assert (found.signed, found.missing) == (("alice",), ("aggregator",))
    assert [it.code for it in found.refused.values()] == ["consent-malformed"]
    assert list(found.refused) == ["bob"]
    with open_register(places["alice"]) as register:
        assert register.plan(plan_hash(file.plan)) == file.plan
    # Its own consent is written anew by whoever signs.
    assert sign(file, [places["bob"]], at=START).refused == {}
