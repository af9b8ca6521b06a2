from __future__ import annotations

from collections.abc import Callable

from tests.support.federation_in_memory import pin_platforms
from tests.support.plan_tree import (
    RECIPIENT,
    THEIR_RECIPIENT,
    WORKERS,
    Path,
    Tree,
    add_recipient,
    add_worker,
    by_identity,
    hold_shares,
    plan_tree,
    put,
    take,
    toml_of,
    with_data_keys,
)

from cloister.cli.plan_words import describe
from cloister.plan.plan import parse_plan

STATE, BEFORE = "sha256:" + 64 * "5", "sha256:" + 64 * "6"


PLATFORMS = {name: 32 * str(at) for at, name in enumerate(("aggregator", *WORKERS))}


def words(change: Callable[[Tree], Tree] = lambda tree: tree) -> str:
    tree = pin_platforms(plan_tree(), PLATFORMS)
    return "\n".join(describe(parse_plan(toml_of(change(tree)))))


def test_a_plain_plan_has_nothing_to_be_careful_of() -> None:
    said = words()
    assert "aggregator aggregates; alice, bob train" in said
    assert "after 12 hours or 100000 rounds" in said
    assert "SIMULATED" in said
    assert "CAUTION" not in said
    assert "takes over" not in said


def test_workers_without_evidence_are_named_with_what_that_costs() -> None:
    said = words(lambda tree: by_identity(tree, "bob"))
    assert "CAUTION: bob" in said
    assert "no colluder (0)" in said
    said = words(lambda it: by_identity(add_worker(it, "carol"), "bob", colluders=1))
    assert "At most 1 of the parties may pool" in said


def test_the_machines_are_named_party_by_party() -> None:
    said = words()
    for name, platform in PLATFORMS.items():
        assert f"{name} on the platform {platform}" in said


def test_who_may_run_on_anybodys_machine_is_to_be_careful_of() -> None:
    said = words(lambda tree: take(tree, ("party", 2, "platforms")))
    assert "CAUTION: the plan does not say on which machines bob may run" in said
    assert "alice on the platform" in said
    # A policy that lists them is as good, for both.
    listed: Path = ("policy", "worker", "platforms")
    said = words(
        lambda tree: put(
            take(tree, ("party", 2, "platforms")), listed, [PLATFORMS["alice"]]
        )
    )
    assert "CAUTION" not in said
    # "any" is no list.
    said = words(lambda tree: put(take(tree, ("party", 2, "platforms")), listed, "any"))
    assert "CAUTION" in said


def test_a_plan_without_attested_workers_has_no_policy_for_them() -> None:
    said = words(lambda tree: by_identity(tree, "alice", "bob"))
    assert "server: an SGX enclave" in said
    assert "worker: " not in said


def test_an_amendment_says_what_it_takes_over() -> None:
    before: Tree = {"plan": BEFORE, "state": STATE, "round": 7}
    said = words(lambda tree: put(tree, ("predecessor",), before))
    assert f"takes over the run of plan {BEFORE}" in said
    assert f"after round 7, from state {STATE}" in said


def test_without_keys_nothing_is_said_of_them() -> None:
    said = words()
    for word in ("Custodians keep keys", "share", "recipient:", "attested nodes"):
        assert word not in said


def test_attested_recipients_are_named_with_what_they_must_run() -> None:
    said = words(lambda tree: add_recipient(tree, "rita"))
    assert "rita may use the model in attested nodes" in said
    assert "recipient: an SGX enclave" in said
    assert f"{THEIR_RECIPIENT}: the custodian of rita keeps the identity" in said
    assert "to its own recipient alone, which must run exactly" in said
    assert "CAUTION: the plan does not say on which machines rita may run" in said


def test_a_recipients_metrics_on_its_host_are_said_openly() -> None:
    pinned = "sha256:" + 64 * "8"
    said = words(lambda tree: add_recipient(tree, "rita"))
    assert "evaluates" not in said
    said = words(
        lambda tree: put(add_recipient(tree, "rita"), ("party", 3, "data"), pinned)
    )
    assert f"node of rita evaluates the model on the records {pinned}" in said
    assert "metrics over them appear in its log on its host" in said


def test_whose_records_a_host_can_read_is_said_openly() -> None:
    said = words()
    assert "The records of alice, bob are not sealed: whoever has the machine" in said
    assert "sealed one by one" not in said
    said = words(lambda tree: with_data_keys(tree, "bob"))
    assert "The records of bob are sealed one by one" in said
    assert "The records of alice are not sealed" in said
    assert "not sealed" not in words(lambda it: with_data_keys(it, "alice", "bob"))


def test_who_reads_predictions_is_said_with_what_they_are_of() -> None:
    assert "predict" not in words(lambda tree: add_recipient(tree, "rita"))
    said = words(predicting)
    assert "node of rita predicts on whatever rita sealed under its data key" in said
    assert f"what it predicts is sealed to\n  {RECIPIENT}" in said
    assert "rita keeps the key of its data, and releases it to its own recipient" in (
        said
    )
    assert "The records of rita" not in said, "the plan pins none"


def predicting(tree: Tree) -> Tree:
    with_data_keys(add_recipient(tree, "rita"), "rita")
    return put(tree, ("party", 3, "predictions_to"), RECIPIENT)


def test_whose_node_writes_the_network_down_is_said() -> None:
    assert "network" not in words()
    said = words(lambda tree: put(tree, ("model", "graph"), "bob"))
    assert "node of bob seals the network with the model's values to the same" in said


def test_who_could_open_the_state_is_said_openly() -> None:
    said = words(lambda tree: hold_shares(tree, "aggregator", "alice"))
    assert "aggregator, alice keep a share each" in said
    assert "every attested node that trains or aggregates" in said
    assert "No one of them alone can open the state; all of them together can." in said


def test_who_gets_a_data_key_is_said_with_what_that_runs() -> None:
    key: Path = ("party", 1, "data_key")
    value = "sha256:" + 64 * "7"
    said = words(lambda tree: put(tree, key, value))
    assert "alice keeps the key of its data" in said
    assert "which must run exactly what is listed above" in said
    said = words(lambda tree: put(by_identity(tree, "alice"), key, value))
    assert "its own worker alone, whatever that runs" in said


def test_what_a_crash_costs_is_said() -> None:
    assert "after every round" in words()
    assert "costs the round it is in" in words()
    kept = words(lambda tree: put(tree, ("rounds", "mirror_every"), 8))
    assert "after every 8 rounds" in kept
    assert "costs 8 rounds at most" in kept
