from __future__ import annotations

import pytest
from tests.support.plan_tree import (
    RECIPIENT,
    THEIR_RECIPIENT,
    Tree,
    Value,
    add_recipient,
    by_identity,
    hold_shares,
    plan_tree,
    put,
    take,
    toml_of,
)

from cloister.errors import ConfigError
from cloister.plan.plan import Plan, parse_plan, plan_hash

DIGEST = "sha256:" + 64 * "e"


def plan(tree: Tree) -> Plan:
    return parse_plan(toml_of(tree))


def refusal(tree: Tree) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(tree)
    return caught.value


def with_recipient() -> Tree:
    """Returns a plan whose fourth party is an attested recipient."""
    return add_recipient(plan_tree(), "rita")


def test_a_plan_may_have_attested_recipients_beside_the_others() -> None:
    found = plan(with_recipient())
    assert [it.role for it in found.party] == ["server", *2 * ["worker"], "recipient"]
    assert found.recipients == (RECIPIENT, THEIR_RECIPIENT)
    assert found.policy_of("rita") is found.policy.recipient
    assert [it.name for it in found.workers] == ["alice", "bob"]


def test_a_recipient_is_always_attested() -> None:
    error = refusal(put(with_recipient(), ("party", 3, "admit"), "identity"))
    assert error.code == "party-admit"
    assert "rita" in error.what


def test_a_plan_may_pin_what_a_recipient_evaluates_on() -> None:
    assert plan(with_recipient()).find_party("rita").data is None
    pinned = plan(put(with_recipient(), ("party", 3, "data"), DIGEST))
    assert pinned.find_party("rita").data == DIGEST
    assert [it.name for it in pinned.workers] == ["alice", "bob"]


def test_a_server_has_no_data_and_every_worker_has() -> None:
    error = refusal(put(with_recipient(), ("party", 0, "data"), DIGEST))
    assert error.code == "party-data"
    error = refusal(take(with_recipient(), ("party", 1, "data")))
    assert error.code == "party-data"


def test_records_that_are_only_evaluated_may_be_anothers_too() -> None:
    """They weigh nothing in training; two workers' would weigh twice."""
    tree = put(with_recipient(), ("party", 3, "data"), DIGEST)
    found = plan(put(tree, ("party", 1, "data"), DIGEST))
    assert found.find_party("rita").data == found.find_party("alice").data
    error = refusal(put(tree, ("party", 2, "data"), DIGEST))
    assert (error.code, error.got) == ("parties-repeat", DIGEST)


def test_a_recipient_says_to_whom_the_model_is_sealed() -> None:
    error = refusal(take(with_recipient(), ("party", 3, "recipient")))
    assert error.code == "party-recipient"
    assert "rita" in error.what


@pytest.mark.parametrize("at", [0, 1])
def test_nobody_else_is_a_recipient(at: int) -> None:
    error = refusal(put(plan_tree(), ("party", at, "recipient"), THEIR_RECIPIENT))
    assert error.code == "party-recipient"


@pytest.mark.parametrize("recipient", ["", "age1", "AGE-SECRET-KEY-1ABC"])
def test_a_recipient_has_the_form_of_one(recipient: str) -> None:
    tree = put(with_recipient(), ("party", 3, "recipient"), recipient)
    assert refusal(tree).code == "recipient-invalid"


def test_two_recipients_do_not_share_a_key() -> None:
    assert refusal(add_recipient(with_recipient(), "rob")).code == "parties-repeat"
    tree = add_recipient(with_recipient(), "rob", recipient="age1" + 58 * "p")
    assert len(plan(tree).recipients) == 3


def test_a_recipients_machines_may_be_named() -> None:
    platforms: list[Value] = [32 * "1"]
    found = plan(put(with_recipient(), ("party", 3, "platforms"), platforms))
    assert found.policy_of("rita").platforms == (32 * "1",)


@pytest.mark.parametrize("at", [0, 3])
def test_only_a_worker_has_a_data_key(at: int) -> None:
    error = refusal(put(with_recipient(), ("party", at, "data_key"), DIGEST))
    assert error.code == "party-data-key"


def test_each_worker_has_a_data_key_of_its_own() -> None:
    tree = put(plan_tree(), ("party", 1, "data_key"), DIGEST)
    assert plan(tree).find_party("alice").data_key == DIGEST
    error = refusal(put(tree, ("party", 2, "data_key"), DIGEST))
    assert (error.code, error.got) == ("parties-repeat", DIGEST)


def test_a_worker_without_evidence_may_have_a_data_key() -> None:
    tree = put(by_identity(plan_tree(), "alice"), ("party", 1, "data_key"), DIGEST)
    assert plan(tree).find_party("alice").data_key == DIGEST


@pytest.mark.parametrize("holder", ["aggregator", "alice", "rita"])
def test_no_party_alone_holds_the_shares(holder: str) -> None:
    error = refusal(hold_shares(with_recipient(), holder))
    assert error.code == "shares-too-few"
    assert repr(holder) in error.what


def test_parties_of_every_role_may_hold_a_share() -> None:
    found = plan(hold_shares(with_recipient(), "aggregator", "alice", "rita"))
    assert [it.name for it in found.shareholders] == ["aggregator", "alice", "rita"]
    assert plan(plan_tree()).shareholders == ()


def test_two_equal_shares_are_refused() -> None:
    tree = put(plan_tree(), ("party", 1, "state_share"), DIGEST)
    error = refusal(put(tree, ("party", 2, "state_share"), DIGEST))
    assert error.code == "parties-repeat"
    assert "state share" in error.what


@pytest.mark.parametrize("key", ["data", "data_key", "state_share", "recipient"])
def test_every_key_is_part_of_the_hash(key: str) -> None:
    tree = hold_shares(with_recipient(), "alice", "bob")
    at = 3 if key in ("data", "recipient") else 1
    value = "age1" + 58 * "p" if key == "recipient" else DIGEST
    before = plan_hash(plan(tree))
    assert plan_hash(plan(put(tree, ("party", at, key), value))) != before


# To whom the model is sealed.


@pytest.mark.parametrize("model", [None, {}, {"recipients": []}])
def test_a_model_may_go_to_attested_recipients_alone(model: Value | None) -> None:
    tree = take(with_recipient(), ("model",))
    found = plan(tree if model is None else put(tree, ("model",), model))
    assert found.recipients == (THEIR_RECIPIENT,)


@pytest.mark.parametrize("model", [None, {}, {"recipients": []}])
def test_a_model_for_nobody_is_refused(model: Value | None) -> None:
    tree = take(plan_tree(), ("model",))
    error = refusal(tree if model is None else put(tree, ("model",), model))
    assert (error.code, error.got) == ("recipients-number", "0")


def test_a_model_is_not_sealed_twice_to_one() -> None:
    twice = put(plan_tree(), ("model", "recipients"), [RECIPIENT, RECIPIENT])
    both = put(with_recipient(), ("model", "recipients"), [THEIR_RECIPIENT])
    for tree, repeated in ((twice, RECIPIENT), (both, THEIR_RECIPIENT)):
        error = refusal(tree)
        assert (error.code, error.got) == ("recipients-repeat", repeated)


def test_the_attested_recipients_count_among_all() -> None:
    digits = "023456789acdefghjklm"
    many: list[Value] = []
    many += [f"age1{56 * 'p'}{a}{b}" for a in digits for b in digits][:64]
    found = plan(put(plan_tree(), ("model", "recipients"), many))
    assert len(found.recipients) == 64
    error = refusal(put(with_recipient(), ("model", "recipients"), many))
    assert (error.code, error.got) == ("recipients-number", "65")
