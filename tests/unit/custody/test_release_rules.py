from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from tests.support.plan_tree import (
    RECIPIENT,
    THEIR_RECIPIENT,
    Tree,
    add_recipient,
    add_worker,
    by_identity,
    hold_shares,
    plan_tree,
    toml_of,
)

from cloister.custody.release_rules import all_keys_for, keys_for
from cloister.errors import ProtocolError, VerificationError
from cloister.plan.plan import Plan, Role, parse_plan
from cloister.storage.keys import KeyKind

KINDS: tuple[KeyKind, ...] = get_args(KeyKind)
ROLES: tuple[Role, ...] = get_args(Role)
DATA = {
    "alice": "sha256:" + 64 * "1",
    "bob": "sha256:" + 64 * "2",
    "rita": "sha256:" + 64 * "3",
}
HOLDERS = ("aggregator", "alice", "rita")


def plan_of() -> Plan:
    """Alice, bob and rita have data keys; bob and carol are not attested.

    Rita receives, and her node predicts on what she sealed.
    """
    tree: Tree = add_worker(plan_tree(), "carol")
    add_recipient(tree, "rita")
    parties = tree["party"]
    assert isinstance(parties, list)
    for party in parties:
        assert isinstance(party, dict)
        if party["name"] in DATA:
            party["data_key"] = DATA[str(party["name"])]
        if party["name"] == "rita":
            party["predictions_to"] = RECIPIENT
    by_identity(hold_shares(tree, *HOLDERS), "bob", "carol")
    return parse_plan(toml_of(tree))


PLAN = plan_of()
NAMES = tuple(party.name for party in PLAN.party)


def expected() -> dict[tuple[str, str, KeyKind], str]:
    """Returns all that anybody may have: by custodian, node and kind."""
    share = {p.name: p.state_share for p in PLAN.party}
    assert all(share[name] for name in HOLDERS)
    return {
        ("alice", "alice", "data"): DATA["alice"],
        ("bob", "bob", "data"): DATA["bob"],
        ("rita", "rita", "data"): DATA["rita"],
        ("rita", "rita", "vault"): THEIR_RECIPIENT,
        **{
            (holder, node, "state-share"): str(share[holder])
            for holder in HOLDERS
            for node in ("aggregator", "alice")
        },
    }


def test_a_node_gets_what_the_plan_names_for_it_and_nothing_else() -> None:
    """Every custodian, every party in every role, every kind."""
    allowed = expected()
    for keeper, name, role, kind in product(NAMES, NAMES, ROLES, KINDS):
        right = (keeper, name, kind) in allowed and role == PLAN.find_party(name).role
        if right:
            keys = keys_for(
                PLAN, custodian_party=keeper, role=role, party=name, kinds=(kind,)
            )
            assert keys == {kind: allowed.pop((keeper, name, kind))}
            continue
        with pytest.raises(VerificationError) as caught:
            keys_for(PLAN, custodian_party=keeper, role=role, party=name, kinds=(kind,))
        assert (caught.value.code, caught.value.got) == ("key-not-for-node", kind)
    assert allowed == {}


def test_a_recipients_data_key_is_its_own_nodes_alone() -> None:
    """No worker gets it, and the recipient gets no worker's."""
    for keeper, name in product(NAMES, NAMES):
        keys = all_keys_for(PLAN, custodian_party=keeper, role="recipient", party=name)
        rita = {DATA["rita"], THEIR_RECIPIENT}
        assert keys == (rita if keeper == name == "rita" else set())
    for name in NAMES:
        keys = all_keys_for(PLAN, custodian_party="rita", role="worker", party=name)
        assert DATA["rita"] not in keys


@pytest.mark.parametrize(
    ("keeper", "party"), [("mallory", "alice"), ("alice", "mallory"), ("", "")]
)
def test_who_is_not_in_the_plan_gets_nothing_and_releases_nothing(
    keeper: str, party: str
) -> None:
    with pytest.raises(VerificationError) as caught:
        keys_for(
            PLAN, custodian_party=keeper, role="worker", party=party, kinds=("data",)
        )
    assert caught.value.code == "key-not-for-node"


@pytest.mark.parametrize("kinds", [(), ("data", "data"), ("data", "vault", "data")])
def test_a_request_for_nothing_or_twice_for_one_is_none(
    kinds: tuple[KeyKind, ...],
) -> None:
    with pytest.raises(ProtocolError) as caught:
        keys_for(
            PLAN, custodian_party="alice", role="worker", party="alice", kinds=kinds
        )
    assert caught.value.code == "key-request"


def test_one_kind_too_many_is_not_made_up_for_by_the_others() -> None:
    for kinds in (("data", "vault"), ("vault", "data")):
        with pytest.raises(VerificationError, match="vault") as caught:
            keys_for(
                PLAN,
                custodian_party="alice",
                role="worker",
                party="alice",
                kinds=kinds,
            )
        assert caught.value.code == "key-not-for-node"


def test_keys_come_by_kind_in_the_order_asked_for() -> None:
    keys = keys_for(
        PLAN,
        custodian_party="alice",
        role="worker",
        party="alice",
        kinds=("state-share", "data"),
    )
    assert list(keys) == ["state-share", "data"]
    assert keys["data"] == DATA["alice"]


def test_a_plan_without_keys_gives_none_to_anybody() -> None:
    plan = parse_plan(toml_of(plan_tree()))
    for keeper, party, kind in product(plan.party, plan.party, KINDS):
        with pytest.raises(VerificationError):
            keys_for(
                plan,
                custodian_party=keeper.name,
                role=party.role,
                party=party.name,
                kinds=(kind,),
            )


def test_all_that_a_node_may_have_of_one_custodian_is_that_of_each_kind() -> None:
    for keeper, name, role in product(NAMES, NAMES, ROLES):
        right = role == PLAN.find_party(name).role
        wanted = {
            key
            for (custodian, node, _), key in expected().items()
            if (custodian, node) == (keeper, name) and right
        }
        found = all_keys_for(PLAN, custodian_party=keeper, role=role, party=name)
        assert found == wanted


def test_only_attested_nodes_that_train_have_a_state() -> None:
    with_state = [party.name for party in PLAN.party if party.has_state]
    assert with_state == ["aggregator", "alice"]
