from __future__ import annotations

import pytest
from tests.support.plan_tree import (
    ROOT,
    Tree,
    add_recipient,
    plan_tree,
    policy,
    put,
    take,
    toml_of,
)

from cloister.errors import ConfigError
from cloister.plan.plan import parse_plan


def refusal(tree: Tree) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_plan(toml_of(tree))
    return caught.value


def with_recipient() -> Tree:
    return add_recipient(plan_tree(), "rita")


def test_a_policy_is_missing_where_there_is_a_recipient() -> None:
    error = refusal(take(with_recipient(), ("policy", "recipient")))
    assert error.code == "policy-missing"
    assert "rita" in error.what
    assert "[policy.recipient]" in error.expected


def test_a_policy_for_recipients_is_refused_where_there_is_none() -> None:
    tree = put(plan_tree(), ("policy", "recipient"), policy("recipient", ROOT))
    error = refusal(tree)
    assert (error.code, error.got) == ("policy-unused", "no recipient")


def test_a_plan_without_recipients_has_no_policy_for_them() -> None:
    plan = parse_plan(toml_of(plan_tree()))
    with pytest.raises(ConfigError) as caught:
        plan.policy_for("recipient")
    assert caught.value.code == "policy-missing"


def test_a_recipients_machine_is_one_that_its_policy_lists() -> None:
    tree = put(with_recipient(), ("policy", "recipient", "platforms"), [32 * "1"])
    put(tree, ("party", 3, "platforms"), [32 * "2"])
    error = refusal(tree)
    assert (error.code, error.got) == ("platforms-unlisted", 32 * "2")
    assert "[policy.recipient]" in error.expected


def test_a_recipient_may_run_on_any_machine_only_if_the_plan_says_so_openly() -> None:
    plan = parse_plan(toml_of(with_recipient()))
    assert "rita" in [party.name for party in plan.unpinned]
