from __future__ import annotations

import contextlib
import hashlib
from copy import deepcopy

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.plan_tree import (
    RECIPIENT,
    ROOT,
    Path,
    Tree,
    Value,
    add_recipient,
    add_worker,
    at,
    average,
    by_identity,
    hold_shares,
    leaves,
    plan_tree,
    put,
    tables,
    take,
    toml_of,
    with_data_keys,
    with_quorum,
)

from cloister.errors import CloisterError, ConfigError
from cloister.plan.plan import parse_plan, plan_hash, read_plan
from cloister.plan.toml import MAX_FILE_BYTES

# Where a plan's own words stand: any key is one option more.
OPTIONS: Path = ("task", "options")


def whole_tree(*, root: str = ROOT) -> Tree:
    """Returns a plan with every section, every role and workers of either kind."""
    tree = average(add_worker(plan_tree(root=root), "carol"))
    add_recipient(tree, "rita")
    by_identity(add_worker(tree, "dave"), "carol", "dave")
    with_quorum(tree, 3, sample=4)
    put(tree, ("training", "wire"), "float32")
    put(
        tree,
        ("training", "optimizer"),
        {
            "name": "sgd",
            "learning_rate": 0.5,
            "momentum": 0.5,
            "nesterov": True,
            "weight_decay": 0.001,
        },
    )
    local: Tree = {"learning_rate": 0.25, "momentum": 0.5, "weight_decay": 0.001}
    put(tree, ("training", "local_optimizer"), {"name": "sgd", **local})
    initial: Tree = {"file": "start.safetensors", "sha256": 64 * "9"}
    put(tree, ("training", "initial"), initial)
    hold_shares(tree, "aggregator", "alice")
    put(tree, ("party", 1, "platforms"), [32 * "1", 32 * "2"])
    with_data_keys(tree, "alice", "bob", "rita")
    put(tree, ("party", 4, "predictions_to"), RECIPIENT)
    put(tree, ("model", "graph"), "alice")
    return {
        **tree,
        "admission": {
            "life_seconds": 3600,
            "rounds": 500,
            "custodian_silence_seconds": 600,
        },
        "predecessor": {
            "plan": "sha256:" + 64 * "c",
            "state": "sha256:" + 64 * "d",
            "round": 4,
        },
    }


def hash_of(tree: Tree) -> bytes:
    return plan_hash(parse_plan(toml_of(tree)))


def refusal(tree: Tree | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_plan(tree if isinstance(tree, bytes) else toml_of(tree))
    return caught.value


def other_value(path: Path, value: Value) -> Value:  # noqa: PLR0911 - a table
    """Returns another value that is as good in the same place."""
    if path == ("rounds", "sample"):
        return 3  # there are four workers, and the quorum is three
    if isinstance(value, bool):
        return not value
    match value, path:
        case _, ("training", "schedule", "name"):
            return "constant"
        case _, (*_, "precision" | "wire"):
            return "bfloat16"
        case float(), _:
            return value / 2
        case int(), _:
            return value + 1
        case str(), (*_, "name" | "run" | "class" | "file"):
            return "x" + value
        case str(), _:  # hex digits, or an age recipient
            return value[:-2] + ("e" if value[-2] != "e" else "d") + value[-1]
        case _:
            raise AssertionError(path)


# Leaves with one accepted value only, or none that is as good beside the others.
FIXED = {
    ("plan", "format"),
    ("training", "mode"),
    ("training", "optimizer", "name"),
    ("training", "local_optimizer", "name"),
    ("rounds", "quorum"),
    ("party", 1, "name"),  # of the one whose node seals the graph
    ("model", "graph"),
}


def changeable() -> list[Path]:
    return [
        path
        for path, _ in leaves(whole_tree())
        if path not in FIXED and path[-1] not in {"role", "admit", "root"}
    ]


def test_a_whole_plan_reads_as_written() -> None:
    plan = parse_plan(toml_of(whole_tree()))
    assert plan.run_id == "blobs/a"
    assert plan.server.name == "aggregator"
    assert [worker.name for worker in plan.workers] == [
        *("alice", "bob", "carol", "dave")
    ]
    assert [party.admit for party in plan.party] == [
        *["attested"] * 3,
        "identity",
        "attested",
        "identity",
    ]
    assert plan.training.mode == "fedavg"
    assert plan.training.local_steps == 3
    assert plan.training.local_optimizer is not None
    assert plan.training.local_optimizer.learning_rate == 0.25
    assert plan.training.initial is not None
    assert plan.training.initial.file == "start.safetensors"
    assert plan.model.graph == "alice"
    assert plan.find_party("rita").predictions_to == RECIPIENT
    assert (plan.seats, plan.least_contributors) == (4, 3)
    assert plan.source_files == ("task.py",)
    assert plan.rounds.tolerated_colluders == 0
    assert plan.admission.life_seconds == 3600
    assert plan.admission.custodian_silence_seconds == 600
    assert plan.predecessor is not None
    assert plan.predecessor.round == 4
    assert plan.simulated
    assert plan.policy_for("server") is plan.policy.server
    assert plan.policy_for("worker") is plan.policy.worker
    assert plan.policy_for("recipient") is plan.policy.recipient


def test_a_party_is_found_by_its_name_or_refused_with_all_names() -> None:
    plan = parse_plan(toml_of(whole_tree()))
    assert plan.find_party("bob").name == "bob"
    with pytest.raises(ConfigError, match="'mallory'") as caught:
        plan.find_party("mallory")
    assert caught.value.expected == ("one of aggregator, alice, bob, carol, rita, dave")


@pytest.mark.parametrize("place", [p for p in tables(whole_tree()) if p != OPTIONS])
def test_an_unknown_key_is_named_with_the_keys_that_are_known(place: Path) -> None:
    tree = whole_tree()
    put(tree, (*place, "surplus"), 1)
    error = refusal(tree)
    assert error.code == "key-unknown"
    assert "'surplus'" in error.what
    table = at(whole_tree(), place)
    assert isinstance(table, dict)
    for known in table:
        assert known in error.expected
    if place:
        assert f"[{dotted(place)}]" in error.what


@pytest.mark.parametrize("place", [p for p in tables(whole_tree()) if p != OPTIONS])
def test_a_misspelt_key_is_answered_with_the_right_one(place: Path) -> None:
    tree = whole_tree()
    table = at(tree, place)
    assert isinstance(table, dict)
    key = max(table, key=len)
    table[key + "e"] = table.pop(key)
    error = refusal(tree)
    assert f"{key + 'e'!r}" in error.what
    assert error.remedy == f"Did you mean {key!r}?"


@pytest.mark.parametrize("path", [path for path, _ in leaves(whole_tree())])
@pytest.mark.parametrize("wrong", [[1], {"a": 1}], ids=["list", "table"])
def test_a_value_of_a_wrong_type_is_named_with_what_was_expected(
    path: Path, wrong: Value
) -> None:
    error = refusal(put(whole_tree(), path, wrong))
    assert error.code == "value-invalid"
    where = "task.options" if path[:2] == OPTIONS else dotted(path)
    assert where in error.what
    assert "Expected" in error.what


@pytest.mark.parametrize("path", [path for path, _ in leaves(whole_tree())])
def test_a_number_for_a_text_and_a_text_for_a_number_are_refused(path: Path) -> None:
    tree = whole_tree()
    wrong: Value = 3 if isinstance(at(tree, path), str) else "three"
    put(tree, path, wrong)
    if path[:2] == OPTIONS:
        assert parse_plan(toml_of(tree)).task.options[str(path[2])] == wrong
        return
    assert dotted(path) in refusal(tree).what


@pytest.mark.parametrize("path", [path for path, _ in leaves(whole_tree())])
@pytest.mark.parametrize("wrong", [True, 1979])
def test_a_truth_value_or_a_year_is_no_setting(path: Path, wrong: Value) -> None:
    tree = whole_tree()
    numbers = {"rounds", "batch_size", "seed", "evaluate_every", "warmup_rounds"}
    numbers |= {"life_seconds", "custodian_silence_seconds"}
    numbers |= {"round", "tolerated_colluders", "local_steps", "deadline_seconds"}
    numbers |= {"threads", "learning_rate", "sample", "quorum", "mirror_every"}
    if path[:2] == OPTIONS or path[-1] in ({"nesterov"} if wrong is True else numbers):
        return
    assert refusal(put(tree, path, wrong)).code == "value-invalid"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("plan", "format"), 2),
        (("plan", "name"), ""),
        (("plan", "name"), "Blobs"),
        (("plan", "name"), "-blobs"),
        (("plan", "name"), "b" * 33),
        (("plan", "run"), "a/b"),
        (("plan", "run"), ".."),
        (("task", "file"), "../task.py"),
        (("task", "file"), "task.txt"),
        (("task", "class"), "a.b"),
        (("task", "class"), "1a"),
        (("training", "mode"), "fedsgd"),
        (("training", "wire"), "float16"),
        (("training", "local_steps"), 0),
        (("training", "local_steps"), 2**31),
        (("training", "local_optimizer", "learning_rate"), 0.0),
        (("training", "local_optimizer", "momentum"), 1.0),
        (("training", "local_optimizer", "name"), "adam"),
        (("training", "initial", "file"), "../start.safetensors"),
        (("training", "initial", "file"), ".safetensors"),
        (("training", "initial", "file"), "start.pt"),
        (("training", "initial", "sha256"), 63 * "9"),
        (("training", "initial", "sha256"), "sha256:" + 64 * "9"),
        (("training", "initial", "sha256"), 64 * "A"),
        (("model", "graph"), "Alice"),
        (("training", "rounds"), 0),
        (("training", "rounds"), 2**31),
        (("training", "rounds"), 10**30),
        (("training", "batch_size"), 0),
        (("training", "threads"), 0),
        (("training", "threads"), 1025),
        (("training", "seed"), -1),
        (("training", "seed"), 2**63),
        (("training", "precision"), "float64"),
        (("training", "optimizer", "name"), "adamw"),
        (("training", "optimizer", "learning_rate"), 0.0),
        (("training", "optimizer", "learning_rate"), -0.1),
        (("training", "optimizer", "learning_rate"), float("nan")),
        (("training", "optimizer", "learning_rate"), float("inf")),
        (("training", "optimizer", "momentum"), 1.0),
        (("training", "optimizer", "momentum"), float("nan")),
        (("training", "optimizer", "weight_decay"), -1e-9),
        (("training", "schedule", "name"), "linear"),
        (("training", "schedule", "warmup_rounds"), -1),
        (("rounds", "quorum"), "most"),
        (("rounds", "quorum"), -1),
        (("rounds", "quorum"), 2**31),
        (("rounds", "quorum"), 2.0),
        (("rounds", "deadline_seconds"), 0),
        (("rounds", "deadline_seconds"), 604_801),
        (("rounds", "sample"), 0),
        (("rounds", "sample"), "all"),
        (("rounds", "evaluate_every"), 0),
        (("rounds", "mirror_every"), 0),
        (("rounds", "mirror_every"), 2**31),
        (("party", 0, "role"), "observer"),
        (("party", 1, "admit"), "anybody"),
        (("rounds", "tolerated_colluders"), -1),
        (("rounds", "tolerated_colluders"), "all"),
        (("admission", "life_seconds"), 1799),
        (("admission", "life_seconds"), 604_801),
        (("admission", "life_seconds"), 3600.5),
        (("admission", "rounds"), 0),
        (("admission", "rounds"), 2**31),
        (("admission", "custodian_silence_seconds"), 59),
        (("admission", "custodian_silence_seconds"), 604_801),
        (("predecessor", "plan"), 64 * "a"),
        (("predecessor", "state"), "sha256:" + 64 * "A"),
        (("predecessor", "round"), -1),
        (("party", 1, "data"), "sha256:" + 63 * "a"),
        (("party", 1, "data"), "md5:" + 64 * "a"),
        (("party", 1, "data_key"), 64 * "a"),
        (("party", 1, "state_share"), "sha256:" + 63 * "a"),
    ],
)
def test_a_value_out_of_its_range_is_refused(path: Path, value: Value) -> None:
    assert dotted(path) in refusal(put(whole_tree(), path, value)).what


@pytest.mark.parametrize("path", [path for path, v in leaves(whole_tree()) if v != ""])
def test_no_text_may_end_in_a_line_break(path: Path) -> None:
    tree = whole_tree()
    value = at(tree, path)
    if isinstance(value, str):
        refusal(put(tree, path, value + "\n"))


@pytest.mark.parametrize(
    "path",
    [
        ("plan",),
        ("plan", "format"),
        ("plan", "name"),
        ("plan", "run"),
        ("task",),
        ("task", "file"),
        ("task", "class"),
        ("training",),
        ("training", "mode"),
        ("training", "rounds"),
        ("training", "seed"),
        ("training", "optimizer"),
        ("training", "optimizer", "learning_rate"),
        ("training", "schedule"),
        ("training", "initial", "file"),
        ("training", "initial", "sha256"),
        ("party",),
        ("party", 0, "key"),
        ("policy", "server"),
        ("policy", "server", "root"),
        ("predecessor", "plan"),
        ("predecessor", "state"),
        ("predecessor", "round"),
        ("policy", "server", "tdx", 0, "rtmr2"),
    ],
)
def test_a_missing_key_is_named(path: Path) -> None:
    error = refusal(take(whole_tree(), path))
    assert f"`{path[-1]}`" in error.what


def backwards(value: Value) -> Value:
    """Returns the same tables with their keys in the other order."""
    match value:
        case dict():
            return {key: backwards(value[key]) for key in reversed(value)}
        case list():
            return [backwards(item) for item in value]
        case _:
            return value


def test_two_spellings_of_one_plan_have_one_hash() -> None:
    tree = whole_tree()
    reordered = backwards(tree)
    assert isinstance(reordered, dict)
    spaced = b"# a remark\n\n" + toml_of(tree).replace(b", ", b" ,\t")
    assert hash_of(reordered) == hash_of(tree) == plan_hash(parse_plan(spaced))


def test_a_table_written_at_length_has_the_same_hash() -> None:
    tree = whole_tree()
    plan = tree.pop("plan")
    text = b'[plan]\nrun = "a"\nname = "blobs"\nformat = 0x1\n'
    assert plan_hash(parse_plan(toml_of(tree) + text)) == hash_of(
        {"plan": plan, **tree}
    )


@pytest.mark.parametrize(
    ("path", "default"),
    [
        (("training", "optimizer", "weight_decay"), 0.0),
        (("training", "schedule", "warmup_rounds"), 0),
        (("training", "precision"), "float32"),
        (("training", "threads"), 1),
        (("training", "wire"), "float32"),
        (("training", "optimizer", "nesterov"), False),
        (("training", "local_optimizer", "name"), "sgd"),
        (("training", "local_optimizer", "momentum"), 0.0),
        (("training", "local_optimizer", "weight_decay"), 0.0),
        (("rounds", "evaluate_every"), 50),
        (("admission", "life_seconds"), 43_200),
        (("admission", "rounds"), 100_000),
        (("admission", "custodian_silence_seconds"), 3600),
        (("admission",), {}),
        (("party", 1, "admit"), "attested"),
        (("task", "options"), {}),
        (("policy", "server", "sgx"), []),
    ],
)
def test_a_default_spelt_out_has_the_same_hash(path: Path, default: Value) -> None:
    said = put(whole_tree(), path, default)
    unsaid = take(deepcopy(said), path)
    assert hash_of(said) == hash_of(unsaid)


@pytest.mark.parametrize("default", [{}, {"quorum": "all"}, {"evaluate_every": 50}])
def test_rounds_may_be_left_out_where_all_are_attested(default: Value) -> None:
    said = put(plan_tree(), ("rounds",), default)
    assert hash_of(said) == hash_of(take(deepcopy(said), ("rounds",)))


def test_the_canonical_form_names_every_key_and_its_version() -> None:
    plan = parse_plan(toml_of(plan_tree()))
    form = ["cloister/plan/6", msgspec.to_builtins(plan)]
    assert form[1]["predecessor"] is None
    for key in (
        *("platforms", "data_key", "state_share", "recipient"),
        "predictions_to",
    ):
        assert [party[key] for party in form[1]["party"]] == [None] * 3
    assert form[1]["policy"]["recipient"] is None
    assert form[1]["rounds"] == {
        "quorum": "all",
        "deadline_seconds": None,
        "sample": None,
        "evaluate_every": 4,
        "tolerated_colluders": None,
        "mirror_every": 1,
    }
    assert form[1]["training"]["optimizer"] == {
        "name": "sgd",
        "learning_rate": 0.5,
        "momentum": 0.5,
        "nesterov": False,
        "weight_decay": 0.001,
    }
    assert form[1]["training"]["schedule"] == {"name": "cosine", "warmup_rounds": 2}
    assert form[1]["training"]["wire"] == "float32"
    assert form[1]["training"]["local_steps"] is None
    assert form[1]["training"]["local_optimizer"] is None
    assert form[1]["training"]["initial"] is None
    assert form[1]["model"]["graph"] is None
    assert form[1]["admission"] == {
        "life_seconds": 43_200,
        "rounds": 100_000,
        "custodian_silence_seconds": 3600,
    }
    encoded = cbor2.dumps(form, canonical=True)
    assert plan_hash(plan) == hashlib.sha256(encoded).digest()


def test_a_whole_rate_may_be_written_without_a_point() -> None:
    path: Path = ("training", "optimizer", "learning_rate")
    assert hash_of(put(whole_tree(), path, 1)) == hash_of(put(whole_tree(), path, 1.0))


@pytest.mark.parametrize("path", changeable())
def test_any_changed_value_changes_the_hash(path: Path) -> None:
    tree = whole_tree()
    changed = put(whole_tree(), path, other_value(path, at(tree, path)))
    assert hash_of(changed) != hash_of(tree)


def test_the_roots_change_the_hash() -> None:
    assert hash_of(whole_tree()) != hash_of(
        whole_tree(root="simulated:sha256:" + 64 * "b")
    )


def test_options_of_different_type_are_different_plans() -> None:
    path: Path = ("task", "options", "features")
    values: list[Value] = [1, 1.0, True, "1", 0, False, "true", 2**63 - 1]
    hashes = {hash_of(put(whole_tree(), path, value)) for value in values}
    assert len(hashes) == len(values)


def test_the_order_of_parties_belongs_to_the_plan() -> None:
    tree = whole_tree()
    parties = tree["party"]
    assert isinstance(parties, list)
    before = hash_of(tree)
    parties.reverse()
    assert hash_of(tree) != before


@given(st.data())
def test_the_hash_tells_any_two_different_plans_apart(data: st.DataObject) -> None:
    paths = data.draw(st.lists(st.sampled_from(changeable()), min_size=1, unique=True))
    first, second = whole_tree(), whole_tree()
    for path in paths:
        which = data.draw(st.sampled_from([first, second]))
        put(which, path, other_value(path, at(which, path)))
    assert (hash_of(first) == hash_of(second)) == (first == second)


def parties_of(tree: Tree) -> list[Value]:
    parties = tree["party"]
    assert isinstance(parties, list)
    return parties


def tables_of(tree: Tree, key: str) -> Tree:
    table = tree[key]
    assert isinstance(table, dict)
    return table


def test_a_plan_without_a_server_is_refused() -> None:
    tree = whole_tree()
    del parties_of(tree)[0]
    assert refusal(tree).got == "0 servers and 4 workers"


def test_a_plan_with_two_servers_is_refused() -> None:
    tree = whole_tree()
    key = "ed25519:" + 64 * "9"
    parties_of(tree).append({"name": "second", "role": "server", "key": key})
    assert refusal(tree).got == "2 servers and 4 workers"


def test_a_plan_without_workers_is_refused() -> None:
    tree = whole_tree()
    del parties_of(tree)[5], parties_of(tree)[1:4]
    error = refusal(tree)
    assert (error.code, error.got) == ("parties-invalid", "1 servers and 0 workers")


@pytest.mark.parametrize("what", ["name", "key", "data"])
def test_parties_may_share_neither_name_nor_key_nor_data(what: str) -> None:
    tree = whole_tree()
    put(tree, ("party", 2, what), at(tree, ("party", 1, what)))
    error = refusal(tree)
    assert error.code == "parties-repeat"
    assert what in error.what


def test_a_worker_needs_data_and_a_server_has_none() -> None:
    without = take(whole_tree(), ("party", 1, "data"))
    beside = put(whole_tree(), ("party", 0, "data"), "sha256:" + 64 * "a")
    for tree, party in ((without, "alice"), (beside, "aggregator")):
        error = refusal(tree)
        assert error.code == "party-data"
        assert party in error.what


@pytest.mark.parametrize(
    "key", ["", "ed25519:", "ed25519:" + 63 * "a", "ed25519:" + 64 * "A", "rsa:1"]
)
def test_a_malformed_party_key_is_refused(key: str) -> None:
    assert refusal(put(whole_tree(), ("party", 1, "key"), key)).code == (
        "party-key-invalid"
    )


@pytest.mark.parametrize(
    "recipient", ["", "age1", "age1" + 57 * "q", "age1" + 58 * "b", "ssh-ed25519 A"]
)
def test_a_malformed_recipient_is_refused(recipient: str) -> None:
    error = refusal(put(whole_tree(), ("model", "recipients", 0), recipient))
    assert error.code == "recipient-invalid"


@pytest.mark.parametrize("role", ["worker", "recipient"])
@pytest.mark.parametrize("other", ["hardware", "simulated:sha256:" + 64 * "b"])
def test_a_plan_cannot_mix_trust_roots(other: str, role: str) -> None:
    tree = put(whole_tree(), ("policy", role, "root"), other)
    error = refusal(put(tree, ("policy", role, "platforms"), "any"))
    assert error.code == "roots-mixed"
    assert other in error.got


@pytest.mark.parametrize("role", ["server", "worker", "recipient"])
def test_a_plan_cannot_accept_legacy_certificates(role: str) -> None:
    tree = put(whole_tree(), ("policy", role, "legacy_certificates"), "accepted")
    error = refusal(tree)
    assert error.code == "policy-ignored"
    assert role in error.what


def test_the_server_is_always_attested() -> None:
    error = refusal(put(whole_tree(), ("party", 0, "admit"), "identity"))
    assert error.code == "party-admit"
    assert "aggregator" in error.what


def test_a_worker_by_identity_makes_the_plan_say_how_many_may_collude() -> None:
    tree = take(whole_tree(), ("rounds", "tolerated_colluders"))
    error = refusal(tree)
    assert error.code == "colluders-missing"
    assert "carol" in error.what
    assert "alice" not in error.what
    assert refusal(take(tree, ("rounds",))).code == "colluders-missing"


@pytest.mark.parametrize("colluders", [0, 1, 5])
def test_colluders_are_not_stated_where_everybody_is_attested(colluders: int) -> None:
    tree = put(plan_tree(), ("rounds", "tolerated_colluders"), colluders)
    assert refusal(tree).code == "colluders-unused"


@pytest.mark.parametrize("workers", range(1, 6))
@pytest.mark.parametrize("by_key", [1, 2, 3])
def test_two_updates_at_least_stay_hidden_from_the_tolerated_colluders(
    workers: int, by_key: int
) -> None:
    names = ["alice", "bob", "carol", "dave", "erin"][:workers]
    tree = plan_tree()
    del parties_of(tree)[workers + 1 :]
    for name in names[2:]:
        add_worker(tree, name)
    for colluders in range(7):
        changed = by_identity(deepcopy(tree), *names[:by_key], colluders=colluders)
        if workers - colluders >= 2:
            assert parse_plan(toml_of(changed)).rounds.tolerated_colluders == colluders
        else:
            error = refusal(changed)
            assert error.code == "colluders-too-many"
            assert f"at least {colluders + 2} contributors" in error.expected


def test_a_policy_for_workers_is_missing_where_one_is_attested() -> None:
    error = refusal(take(whole_tree(), ("policy", "worker")))
    assert error.code == "policy-missing"
    assert "alice, bob" in error.what
    assert "carol" not in error.what


def test_a_policy_that_nobody_is_held_to_is_refused() -> None:
    tree = whole_tree()
    policy = at(tree, ("policy", "worker"))
    by_identity(tree, "alice", "bob")
    assert "worker" not in tables_of(tree, "policy")
    assert refusal(put(tree, ("policy", "worker"), policy)).code == "policy-unused"


def test_a_plan_without_attested_workers_has_no_policy_for_them() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "alice", "bob")))
    assert plan.policy.worker is None
    assert plan.policy_for("server") is plan.policy.server
    assert plan.simulated
    with pytest.raises(ConfigError) as caught:
        plan.policy_for("worker")
    assert caught.value.code == "policy-missing"


def test_how_a_worker_is_admitted_changes_the_hash() -> None:
    before = by_identity(plan_tree(), "alice")
    assert hash_of(before) != hash_of(by_identity(deepcopy(before), "bob"))


def test_no_run_goes_on_from_beyond_its_end() -> None:
    path: Path = ("predecessor", "round")
    parse_plan(toml_of(put(whole_tree(), path, 12)))
    assert refusal(put(whole_tree(), path, 13)).code == "predecessor-round"


def test_a_plan_on_hardware_is_not_simulated() -> None:
    assert not parse_plan(toml_of(whole_tree(root="hardware"))).simulated


def test_a_policy_that_accepts_nothing_is_refused() -> None:
    tree = whole_tree()
    for tee in ("sgx", "tdx"):
        take(tree, ("policy", "server", tee))
    assert refusal(tree).code == "policy-empty"


def test_a_warmup_longer_than_the_training_is_refused() -> None:
    tree = put(whole_tree(), ("training", "schedule", "warmup_rounds"), 13)
    assert refusal(tree).code == "warmup-too-long"


def test_an_oversized_plan_is_refused_before_it_is_parsed() -> None:
    assert refusal(b"#" * (MAX_FILE_BYTES + 1)).code == "file-too-large"
    padding = b"#" * (MAX_FILE_BYTES - len(toml_of(whole_tree())))
    parse_plan(toml_of(whole_tree()) + padding)


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        toml_of(whole_tree()) + b"# \xc3\x28\n",
        b"[plan",
        b"plan = 1\nplan = 2",
        b"a = " + b"[" * 10_000,
        b"a = " + b"9" * 10_000,
        b"a = 2026-13-45",
        b'a = "\\ud800"',
    ],
)
def test_what_is_no_toml_in_utf8_is_refused(text: bytes) -> None:
    assert refusal(text).code == "toml-invalid"


def test_an_empty_plan_says_what_is_missing() -> None:
    assert "missing required field" in refusal(b"").what


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_config_error(text: bytes) -> None:
    refusal(text)


TOML_VALUES = st.recursive(
    st.none().map(lambda _: "")
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.text(max_size=40)
    | st.sampled_from(["hardware", "server", "all", "sha256:", "a`b", "$", "\n"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner)
    ),
    max_leaves=6,
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [p for p, _ in leaves(whole_tree())] + tables(whole_tree())[1:]
            ),
            TOML_VALUES,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_no_value_in_any_place_raises_anything_but_a_config_error(
    changes: list[tuple[Path, Value]],
) -> None:
    tree = whole_tree()
    for path, value in changes:
        try:
            put(tree, path, value)
        except (KeyError, IndexError, ValueError):
            continue  # an earlier change took the place away
    with contextlib.suppress(ConfigError):
        plan_hash(parse_plan(toml_of(tree)))


@given(st.integers(0, len(toml_of(whole_tree())) - 1), st.binary(max_size=3))
def test_no_damaged_plan_raises_anything_but_a_config_error(
    at_byte: int, damage: bytes
) -> None:
    text = toml_of(whole_tree())
    with contextlib.suppress(ConfigError):
        parse_plan(text[:at_byte] + damage + text[at_byte + 1 :])


def test_a_missing_file_says_where_it_was_looked_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "nowhere" / "plan.toml"
    with pytest.raises(ConfigError) as caught:
        read_plan(path)
    assert caught.value.code == "file-unreadable"
    assert str(path) in caught.value.expected


def test_a_directory_is_no_plan(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ConfigError, match="cannot read the plan"):
        read_plan(tmp_path_factory.getbasetemp())


def test_every_refusal_is_a_single_line() -> None:
    error: CloisterError = refusal(put(whole_tree(), ("plan", "name"), "a\nb"))
    assert "\n" not in str(error)


def dotted(path: Path) -> str:
    """Returns a path as messages show it: ``party[0].key``."""
    text = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path)
    return text.removeprefix(".")


# A party's own machines.

THEIRS, OTHERS = 32 * "1", 32 * "9"
OF_ALICE: Path = ("party", 1, "platforms")


def pinned(*platforms: str, path: Path = OF_ALICE) -> Tree:
    return put(plan_tree(), path, list(platforms))


def test_a_party_is_judged_by_its_roles_policy_on_its_own_machines() -> None:
    plan = parse_plan(toml_of(pinned(THEIRS)))
    worker = plan.policy_for("worker")
    assert worker.platforms is None
    assert plan.policy_of("alice") == msgspec.structs.replace(
        worker, platforms=(THEIRS,)
    )
    assert plan.policy_of("bob") is worker
    assert plan.policy_of("aggregator") is plan.policy.server
    assert [party.name for party in plan.unpinned] == ["aggregator", "bob"]


def test_the_servers_machines_can_be_named_as_well() -> None:
    plan = parse_plan(toml_of(pinned(THEIRS, path=("party", 0, "platforms"))))
    assert plan.policy_of("aggregator").platforms == (THEIRS,)
    assert plan.policy_for("server").platforms is None


def test_machines_are_part_of_the_hash() -> None:
    hashes = {
        hash_of(tree)
        for tree in (
            plan_tree(),
            pinned(THEIRS),
            pinned(OTHERS),
            pinned(THEIRS, OTHERS),
        )
    }
    assert len(hashes) == 4


@pytest.mark.parametrize(
    "platforms",
    [
        [],
        [""],
        [31 * "1"],
        [33 * "1"],
        [32 * "A"],
        [32 * "g"],
        ["any"],
        [THEIRS + "\n"],
        [THEIRS, "0x" + 30 * "1"],
    ],
)
def test_what_names_no_machine_is_refused(platforms: list[Value]) -> None:
    assert refusal(put(plan_tree(), OF_ALICE, platforms)).code == "party-platforms"


def test_any_machine_is_said_by_naming_none() -> None:
    assert refusal(put(plan_tree(), OF_ALICE, "any")).code == "value-invalid"


def test_machines_of_a_party_without_evidence_would_be_ignored() -> None:
    tree = by_identity(plan_tree(), "alice")
    assert refusal(put(tree, OF_ALICE, [THEIRS])).code == "party-platforms"


def test_no_evidence_is_judged_of_a_party_that_gives_none() -> None:
    plan = parse_plan(toml_of(by_identity(plan_tree(), "alice")))
    assert plan.policy_of("bob") is plan.policy_for("worker")
    assert [party.name for party in plan.unpinned] == ["aggregator", "bob"]
    with pytest.raises(ConfigError) as caught:
        plan.policy_of("alice")
    assert caught.value.code == "policy-missing"


def test_a_partys_machines_are_some_of_those_that_its_policy_lists() -> None:
    listed = put(pinned(THEIRS), ("policy", "worker", "platforms"), [OTHERS])
    error = refusal(listed)
    assert (error.code, error.got) == ("platforms-unlisted", THEIRS)
    put(listed, ("policy", "worker", "platforms"), [OTHERS, THEIRS])
    plan = parse_plan(toml_of(listed))
    assert plan.policy_of("alice").platforms == (THEIRS,)
    assert plan.policy_of("bob").platforms == (OTHERS, THEIRS)
    assert [party.name for party in plan.unpinned] == ["aggregator"]


def test_on_hardware_a_party_narrows_a_policy_that_accepts_any_machine() -> None:
    tree = with_data_keys(plan_tree(root="hardware"), "alice", "bob")
    plan = parse_plan(toml_of(put(tree, OF_ALICE, [THEIRS])))
    assert plan.policy_of("alice").platforms == (THEIRS,)
    assert [party.name for party in plan.unpinned] == ["aggregator", "bob"]
