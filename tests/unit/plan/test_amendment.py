from __future__ import annotations

import tomllib
from copy import deepcopy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.plan_tree import (
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
    take,
    toml_of,
    with_data_keys,
    with_quorum,
)

from cloister.errors import ConfigError, VerificationError
from cloister.plan.amendment import check_successor, successor_text
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, Predecessor, parse_plan, plan_hash

STATE = bytes(range(32))
RECIPIENT = "age1" + 58 * "q"
THEIRS = "age1" + 58 * "p"


def base_tree() -> Tree:
    """Returns a plan with every role, a worker of either kind and every section."""
    tree = by_identity(add_worker(plan_tree(), "carol"), "carol")
    add_recipient(tree, "rita", recipient=THEIRS)
    hold_shares(tree, "aggregator", "alice")
    with_data_keys(tree, "alice", "rita")
    put(tree, ("party", 4, "predictions_to"), THEIRS)
    put(tree, ("model", "graph"), "alice")
    return {**tree, "admission": {"life_seconds": 3600, "rounds": 500}}


BASE = parse_plan(toml_of(base_tree()))


def predecessor_table(plan: Plan, *, round: int = 4, state: bytes = STATE) -> Tree:  # noqa: A002
    return {
        "plan": format_digest(plan_hash(plan)),
        "state": format_digest(state),
        "round": round,
    }


def successor_tree(before: Plan = BASE) -> Tree:
    return {**base_tree(), "predecessor": predecessor_table(before)}


def check(tree: Tree, *, before: Plan = BASE) -> Plan:
    successor = parse_plan(toml_of(tree))
    assert check_successor(before, successor) is successor
    return successor


def refusal(tree: Tree, *, before: Plan = BASE) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        check(tree, before=before)
    return caught.value


def changed(path: Path, value: Value) -> Tree:
    return put(successor_tree(), path, value)


def test_a_plan_that_changes_nothing_but_its_predecessor_is_an_amendment() -> None:
    successor = check(successor_tree())
    assert plan_hash(successor) != plan_hash(BASE)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("policy", "server", "sgx", 0, "mr_enclave"), 64 * "e"),
        (("policy", "worker", "sgx", 0, "mr_enclave"), 64 * "e"),
        (("policy", "worker", "tdx", 0, "rtmr2"), 96 * "e"),
        (("policy", "worker", "tdx"), []),
        (("policy", "recipient", "sgx", 0, "mr_enclave"), 64 * "e"),
        (("party", 4, "platforms"), [32 * "1"]),
        (("policy", "server", "platforms"), "any"),
        (("party", 0, "platforms"), [32 * "1"]),
        (("party", 2, "platforms"), [32 * "1", 32 * "2"]),
        (("training", "rounds"), 13),
        (("training", "rounds"), 2**31 - 1),
        (("rounds", "evaluate_every"), 1),
        (("admission", "life_seconds"), 1800),
        (("admission", "rounds"), 1),
        (("predecessor", "state"), "sha256:" + 64 * "0"),
        (("predecessor", "round"), 0),
        (("predecessor", "round"), 1),
        (("predecessor", "round"), 12),
    ],
)
def test_what_may_change_may_change(path: Path, value: Value) -> None:
    check(changed(path, value))


@pytest.mark.parametrize(
    "after", [[32 * "3", 32 * "2"], [32 * "1"], [32 * "1", 32 * "2", 32 * "3"], None]
)
def test_a_partys_machine_may_be_replaced(after: Value | None) -> None:
    path: Path = ("party", 1, "platforms")
    before = parse_plan(toml_of(put(base_tree(), path, [32 * "1", 32 * "2"])))
    tree = successor_tree(before)
    check(tree if after is None else put(tree, path, after), before=before)


def test_another_accepted_measurement_may_be_added() -> None:
    tree = successor_tree()
    references = at(tree, ("policy", "worker", "sgx"))
    assert isinstance(references, list)
    references.append({"mr_enclave": 64 * "e"})
    check(tree)


def test_all_that_may_change_may_change_at_once() -> None:
    tree = changed(("training", "rounds"), 20)
    put(tree, ("policy", "server", "sgx", 0, "mr_enclave"), 64 * "e")
    put(tree, ("rounds", "evaluate_every"), 9)
    del tree["admission"]
    check(tree)


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("plan", "name"), "other", "amendment-plan"),
        (("plan", "run"), "b", "amendment-plan"),
        (("task", "file"), "other.py", "amendment-task"),
        (("task", "class"), "Other", "amendment-task"),
        (("task", "options", "features"), 13, "amendment-task"),
        (("task", "options", "features"), 12.0, "amendment-task"),
        (("task", "options", "more"), 1, "amendment-task"),
        (("task", "options"), {}, "amendment-task"),
        (("training", "batch_size"), 17, "amendment-training"),
        (("training", "seed"), 8, "amendment-training"),
        (("training", "precision"), "bfloat16", "amendment-training"),
        (("training", "wire"), "bfloat16", "amendment-training"),
        (("training", "threads"), 2, "amendment-training"),
        (("training", "optimizer", "learning_rate"), 0.25, "amendment-training"),
        (("training", "optimizer", "momentum"), 0.25, "amendment-training"),
        (("training", "optimizer", "weight_decay"), 0.0, "amendment-training"),
        (("training", "schedule", "name"), "constant", "amendment-training"),
        (("training", "schedule", "warmup_rounds"), 3, "amendment-training"),
        (
            ("training", "initial"),
            {"file": "other.safetensors", "sha256": 64 * "9"},
            "amendment-training",
        ),
        (("training", "rounds"), 11, "amendment-shorter"),
        (("rounds", "tolerated_colluders"), 1, "amendment-rounds"),
        (("rounds", "mirror_every"), 2, "amendment-rounds"),
        (("party", 0, "name"), "other", "amendment-party"),
        (("party", 1, "key"), "ed25519:" + 64 * "9", "amendment-party"),
        (("party", 1, "data"), "sha256:" + 64 * "9", "amendment-party"),
        (("party", 1, "admit"), "identity", "amendment-party"),
        (("party", 3, "admit"), "attested", "amendment-party"),
        (("party", 1, "data_key"), "sha256:" + 64 * "9", "amendment-party"),
        (("party", 1, "state_share"), "sha256:" + 64 * "9", "amendment-party"),
        (("party", 4, "recipient"), RECIPIENT, "amendment-party"),
        (("party", 4, "predictions_to"), RECIPIENT, "amendment-party"),
        (("model", "graph"), "bob", "amendment-model"),
        (("model", "recipients"), [RECIPIENT], "amendment-model"),
    ],
)
def test_what_may_not_change_is_named(path: Path, value: Value, code: str) -> None:
    tree = changed(path, value)
    if path == ("party", 3, "admit"):
        take(tree, ("rounds", "tolerated_colluders"))
    error = refusal(tree)
    assert error.code == code
    if code != "amendment-shorter":
        assert dotted(path) in error.what


def averaged_tree() -> Tree:
    """Returns a plan of fedavg, of which not everybody takes part in every round."""
    tree = average(add_worker(base_tree(), "dave"))
    put(tree, ("training", "schedule"), {"name": "step", "every_rounds": 5})
    return with_quorum(tree, 3, sample=4)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("training", "local_steps"), 4),
        (("training", "local_optimizer", "learning_rate"), 0.5),
        (("training", "local_optimizer", "name"), "task"),
        (("training", "optimizer", "name"), "adagrad"),
        (("training", "schedule", "every_rounds"), 6),
        (("rounds", "quorum"), 2),
        (("rounds", "deadline_seconds"), 61),
        (("rounds", "sample"), 3),
    ],
)
def test_what_a_round_is_and_who_takes_part_stays(path: Path, value: Value) -> None:
    before = parse_plan(toml_of(averaged_tree()))
    named: Tree = {**averaged_tree(), "predecessor": predecessor_table(before)}
    check(named, before=before)
    error = refusal(put(named, path, value), before=before)
    assert error.code == f"amendment-{path[0]}"
    assert dotted(path) in error.what


def test_a_round_ends_with_everybody_or_not_for_the_whole_run() -> None:
    before = parse_plan(toml_of(averaged_tree()))
    named: Tree = {**averaged_tree(), "predecessor": predecessor_table(before)}
    take(named, ("rounds", "quorum"))
    take(named, ("rounds", "deadline_seconds"))
    assert refusal(named, before=before).code == "amendment-rounds"


def test_every_section_of_a_plan_is_free_or_tried_above() -> None:
    free = {("policy",), ("predecessor",), ("admission",)}
    tried = {("plan",), ("task",), ("training",), ("rounds",), ("party",), ("model",)}
    whole = msgspec.to_builtins(parse_plan(toml_of(successor_tree())))
    assert {(section,) for section in whole} == free | tried


def test_a_new_recipient_of_the_model_needs_a_new_run() -> None:
    tree = successor_tree()
    recipients = at(tree, ("model", "recipients"))
    assert isinstance(recipients, list)
    recipients.append(RECIPIENT)
    error = refusal(tree)
    assert error.code == "amendment-model"
    assert "new run" in error.remedy


def test_nobody_joins_leaves_or_changes_places() -> None:
    joined = add_worker(successor_tree(), "dave")
    left = take(successor_tree(), ("party", 2))
    swapped = successor_tree()
    parties = swapped["party"]
    assert isinstance(parties, list)
    parties[1], parties[2] = parties[2], parties[1]
    for tree in (joined, left, swapped):
        assert refusal(tree).code == "amendment-party"


@pytest.mark.parametrize("role", ["server", "worker", "recipient"])
def test_a_run_never_goes_on_under_another_root(role: str) -> None:
    real, after = (
        with_data_keys(add_recipient(plan_tree(root=it), "rita"), "alice", "bob")
        for it in ("hardware", ROOT)
    )
    before = parse_plan(toml_of(real))
    after["predecessor"] = predecessor_table(before)
    error = refusal(after, before=before)
    assert error.code == "amendment-policy"
    assert f"policy.{role}.root" in error.what


def test_a_plan_that_names_no_predecessor_is_no_amendment() -> None:
    error = refusal(base_tree())
    assert (error.code, error.got) == ("amendment-predecessor", "no [predecessor]")


def test_a_plan_that_names_another_predecessor_is_no_amendment() -> None:
    error = refusal(changed(("predecessor", "plan"), "sha256:" + 64 * "0"))
    assert error.code == "amendment-predecessor"
    assert plan_hash(BASE).hex() in error.expected


def test_an_amendment_skips_none_before_it() -> None:
    first = check(successor_tree())
    assert refusal(successor_tree(), before=first).code == "amendment-predecessor"


def test_a_run_goes_on_from_a_round_that_it_had() -> None:
    tree = changed(("predecessor", "round"), 13)
    error = refusal(put(tree, ("training", "rounds"), 20))
    assert (error.code, error.expected) == ("amendment-round", "0 to 12")


def test_a_second_amendment_does_not_go_back_behind_the_first() -> None:
    first = check(successor_tree())
    for number in (4, 5, 12):
        second = {**base_tree(), "predecessor": predecessor_table(first, round=number)}
        check(second, before=first)
    second = {**base_tree(), "predecessor": predecessor_table(first, round=3)}
    error = refusal(second, before=first)
    assert (error.code, error.expected) == ("amendment-round", "4 to 12")


def test_two_amendments_in_one_round_go_on_from_one_state() -> None:
    first = check(successor_tree())
    table = predecessor_table(first, state=bytes(32))
    error = refusal({**base_tree(), "predecessor": table}, before=first)
    assert error.code == "amendment-state"


def other(value: Value) -> Value:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value[:-1] + ("1" if value[-1] != "1" else "2")
        case _:
            raise AssertionError(value)


FREE = {"policy", "admission", "predecessor"}
FREE_LEAVES: set[Path] = {("training", "rounds"), ("rounds", "evaluate_every")}


@given(st.data())
def test_no_changed_value_passes_unless_it_may(data: st.DataObject) -> None:
    tree = successor_tree()
    paths = data.draw(
        st.lists(
            st.sampled_from([path for path, _ in leaves(tree)]),
            min_size=1,
            max_size=4,
            unique=True,
        )
    )
    for path in paths:
        put(tree, path, other(at(tree, path)))
    try:
        successor = parse_plan(toml_of(tree))
    except ConfigError:
        return
    if ("predecessor", "plan") not in paths and all(
        path in FREE_LEAVES or (path[0] in FREE and path[-1] != "root")
        for path in paths
    ):
        check_successor(BASE, successor)
        return
    with pytest.raises(VerificationError) as caught:
        check_successor(BASE, successor)
    assert caught.value.code.startswith("amendment-")


WRITTEN_BY_HAND = toml_of(base_tree()) + b"# the end\n"


def test_an_amendment_is_the_plan_with_its_predecessor_named() -> None:
    text = successor_text(WRITTEN_BY_HAND, BASE, state=STATE, round=7)
    successor = check_successor(BASE, parse_plan(text.encode()))
    assert successor.predecessor == Predecessor(
        plan=format_digest(plan_hash(BASE)), state=format_digest(STATE), round=7
    )
    assert text.startswith(WRITTEN_BY_HAND.decode())
    assert text.endswith("\nround = 7\n")


def test_the_next_amendment_replaces_the_table_and_keeps_remarks() -> None:
    before, text = BASE, WRITTEN_BY_HAND.decode()
    for number in (3, 5, 5, 12):
        text = successor_text(text.encode(), before, state=STATE, round=number)
        text = text.replace("[predecessor]", "[predecessor]  # whose run\n# from here")
        before = check_successor(before, parse_plan(text.encode()))
        assert before.predecessor is not None
        assert before.predecessor.round == number
    assert text.count("[predecessor]") == 1
    assert "# the end\n" in text
    assert "# from here\n" in text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_the_table_is_replaced_wherever_it_stands(newline: str, place: str) -> None:
    tables = ["[plan]\nformat = 1\nname = 'blobs'\nrun = 'a'\n"]
    named = predecessor_table(BASE)
    lines = "".join(f"{key} = {named[key]!r}\n" for key in named)
    tables.insert(0 if place == "first" else 1, f"  [predecessor]\n{lines}")
    rest = {key: value for key, value in base_tree().items() if key != "plan"}
    text = (toml_of(rest).decode() + "\n".join(tables)).replace("\n", newline)
    first = parse_plan(text.encode())
    amended = successor_text(text.encode(), first, state=bytes(32), round=9)
    successor = check_successor(first, parse_plan(amended.encode()))
    assert tomllib.loads(amended)["plan"]["run"] == "a"
    assert successor.predecessor is not None
    assert successor.predecessor.round == 9


@pytest.mark.parametrize(
    "header",
    [
        "[ predecessor ]",
        '["predecessor"]',
        "predecessor = ",
    ],
)
def test_a_table_in_an_odd_spelling_is_left_to_people(header: str) -> None:
    named = predecessor_table(BASE)
    text = toml_of(base_tree()).decode()
    if header.endswith("= "):
        text = toml_of(successor_tree()).decode()
    else:
        text += header + "".join(f"\n{key} = {named[key]!r}" for key in named)
    plan = parse_plan(text.encode())
    with pytest.raises(ConfigError) as caught:
        successor_text(text.encode(), plan, state=STATE, round=5)
    assert caught.value.code == "amendment-text"
    assert "by hand" in caught.value.remedy


def test_words_that_look_like_the_table_are_never_taken_out_unseen() -> None:
    option = 'options = { note = """\n[predecessor]\nround = 3\n""" }\n'
    tree = base_tree()
    del tree["task"]
    text = toml_of(tree).decode() + f"[task]\nfile = 'task.py'\nclass = 'A'\n{option}"
    plan = parse_plan(text.encode())
    with pytest.raises(ConfigError) as caught:
        successor_text(text.encode(), plan, state=STATE, round=5)
    assert caught.value.code == "amendment-text"


def test_only_the_amended_plans_own_text_is_taken() -> None:
    other_text = toml_of(put(base_tree(), ("training", "seed"), 8))
    with pytest.raises(ConfigError) as caught:
        successor_text(other_text, BASE, state=STATE, round=5)
    assert caught.value.code == "amendment-text"
    assert plan_hash(BASE).hex() in caught.value.expected


def test_a_run_that_has_not_begun_its_rounds_can_be_amended() -> None:
    """Its nodes were warranted already, so no other plan can take its place."""
    text = successor_text(WRITTEN_BY_HAND, BASE, state=STATE, round=0)
    successor = check_successor(BASE, parse_plan(text.encode()))
    assert successor.predecessor is not None
    assert successor.predecessor.round == 0
    again = successor_text(text.encode(), successor, state=STATE, round=0)
    check_successor(successor, parse_plan(again.encode()))


def test_a_round_beyond_the_plans_end_is_not_written() -> None:
    with pytest.raises(ConfigError) as caught:
        successor_text(WRITTEN_BY_HAND, BASE, state=STATE, round=13)
    assert caught.value.code == "predecessor-round"


def test_the_check_changes_neither_plan() -> None:
    before, after = deepcopy(BASE), parse_plan(toml_of(successor_tree()))
    digest = plan_hash(after)
    check_successor(before, after)
    assert before == BASE
    assert plan_hash(after) == digest


def dotted(path: Path) -> str:
    text = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in path)
    return text.removeprefix(".")
