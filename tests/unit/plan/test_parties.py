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
    with_data_keys,
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


def test_a_server_has_no_data_key() -> None:
    error = refusal(put(with_recipient(), ("party", 0, "data_key"), DIGEST))
    assert error.code == "party-data-key"


def test_a_recipient_has_a_data_key_for_records_that_are_pinned_or_predicted_on() -> (
    None
):
    keyed = with_data_keys(with_recipient(), "rita")
    error = refusal(keyed)
    assert (error.code, error.got) == ("party-data-key", "neither")
    pinned = plan(put(keyed, ("party", 3, "data"), DIGEST))
    assert pinned.find_party("rita").data_key
    both = put(keyed, ("party", 3, "predictions_to"), RECIPIENT)
    assert plan(both).find_party("rita").predictions_to == RECIPIENT
    take(both, ("party", 3, "data"))
    assert plan(both).find_party("rita").data is None


def test_each_worker_has_a_data_key_of_its_own() -> None:
    tree = put(plan_tree(), ("party", 1, "data_key"), DIGEST)
    assert plan(tree).find_party("alice").data_key == DIGEST
    error = refusal(put(tree, ("party", 2, "data_key"), DIGEST))
    assert (error.code, error.got) == ("parties-repeat", DIGEST)


def test_a_worker_without_evidence_may_have_a_data_key() -> None:
    tree = put(by_identity(plan_tree(), "alice"), ("party", 1, "data_key"), DIGEST)
    assert plan(tree).find_party("alice").data_key == DIGEST


# What a recipient's node predicts.


def test_nobody_predicts_on_records_that_anybody_could_have_sealed() -> None:
    """A host with records of its own would read the model off the answers."""
    tree = put(with_recipient(), ("party", 3, "predictions_to"), RECIPIENT)
    error = refusal(tree)
    assert (error.code, error.got) == ("party-predictions", "none")
    assert refusal(put(tree, ("party", 3, "data"), DIGEST)).code == "party-predictions"


@pytest.mark.parametrize("at", [0, 1])
def test_only_a_recipient_predicts(at: int) -> None:
    error = refusal(put(plan_tree(), ("party", at, "predictions_to"), RECIPIENT))
    assert error.code == "party-predictions"
    assert "would be ignored" in error.what


@pytest.mark.parametrize("to", ["", "age1", "AGE-SECRET-KEY-1ABC", DIGEST])
def test_predictions_go_to_an_age_recipient(to: str) -> None:
    tree = with_data_keys(with_recipient(), "rita")
    error = refusal(put(tree, ("party", 3, "predictions_to"), to))
    assert error.code == "recipient-invalid"
    assert error.got == f"{len(to)} characters of another form"


# Records that lie open, and to whom.


def on_hardware() -> Tree:
    """Returns a plan for real machines, with keys for all data."""
    tree = add_recipient(plan_tree(root="hardware"), "rita")
    return with_data_keys(tree, "alice", "bob")


def test_on_hardware_the_data_of_attested_workers_is_sealed() -> None:
    assert not plan(on_hardware()).simulated
    error = refusal(take(on_hardware(), ("party", 2, "data_key")))
    assert error.code == "party-data-unsealed"
    assert "'bob'" in error.what
    assert "cloister data seal" in error.remedy


def test_on_hardware_a_recipients_data_is_sealed_too() -> None:
    pinned = put(on_hardware(), ("party", 3, "data"), DIGEST)
    error = refusal(pinned)
    assert error.code == "party-data-unsealed"
    assert "'rita'" in error.what
    assert plan(with_data_keys(pinned, "rita")).find_party("rita").data == DIGEST


def test_what_lies_on_its_owners_own_machine_need_not_be_sealed() -> None:
    tree = take(by_identity(on_hardware(), "bob"), ("party", 2, "data_key"))
    assert plan(tree).find_party("bob").data_key is None


def test_in_a_simulation_nothing_needs_to_be_sealed() -> None:
    assert plan(plan_tree()).find_party("alice").data_key is None


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


@pytest.mark.parametrize(
    "key", ["data", "data_key", "state_share", "recipient", "predictions_to"]
)
def test_every_key_is_part_of_the_hash(key: str) -> None:
    tree = hold_shares(with_data_keys(with_recipient(), "rita"), "alice", "bob")
    put(tree, ("party", 3, "predictions_to"), RECIPIENT)
    at = 1 if key in ("data_key", "state_share") else 3
    value = "age1" + 58 * "p" if key in ("recipient", "predictions_to") else DIGEST
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


# Who writes the network's structure down.


@pytest.mark.parametrize("name", ["alice", "bob"])
def test_a_worker_may_seal_the_models_graph(name: str) -> None:
    found = plan(put(plan_tree(), ("model", "graph"), name))
    assert found.model.graph == name
    assert plan_hash(found) != plan_hash(plan(plan_tree()))
    assert plan(plan_tree()).model.graph is None


@pytest.mark.parametrize("name", ["aggregator", "rita", "mallory"])
def test_nobody_but_a_worker_can_seal_the_graph(name: str) -> None:
    error = refusal(put(with_recipient(), ("model", "graph"), name))
    assert (error.code, error.got) == ("graph-party", repr(name))
    assert "alice, bob" in error.expected
