from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support.plan_tree import (
    RECIPIENT,
    ROOT,
    THEIR_RECIPIENT,
    measurement_of,
)

from cloister.cli.deployment_files import ModelEntry, PartyEntry, plan_text
from cloister.cli.recipes import DIGITS, Recipe
from cloister.cli.site_files import SiteEntry, site_text
from cloister.errors import ConfigError
from cloister.plan.plan import Plan, parse_plan
from cloister.plan.training import CosineSchedule, LocalOptimizer, SgdOptimizer
from cloister.plan.values import Option

SHARES = {"aggregator": f"sha256:{64 * 'a'}", "alice": f"sha256:{64 * 'b'}"}
ROLES = {
    "aggregator": "server",
    "alice": "worker",
    "bob": "worker",
    "rita": "recipient",
}


def data_key_of(number: int) -> str:
    return f"sha256:{number + 16:064x}"


def entry(number: int, name: str, role: str) -> PartyEntry:
    return PartyEntry(
        name=name,
        role=role,
        key=f"ed25519:{number:064x}",
        platforms=(32 * str(number),),
        data=f"sha256:{number:064x}" if role == "worker" else None,
        data_key=data_key_of(number) if role == "worker" else None,
        state_share=SHARES.get(name),
        recipient=THEIR_RECIPIENT if role == "recipient" else None,
    )


def written(roles: Mapping[str, str], *, recipe: Recipe = DIGITS) -> Plan:
    """Returns the plan that is written for such parties."""
    text = plan_text(
        recipe,
        run="a",
        parties=tuple(
            entry(number, name, role)
            for number, (name, role) in enumerate(roles.items(), 1)
        ),
        root=ROOT,
        measurements={role: measurement_of(role) for role in set(roles.values())},
        model=ModelEntry(recipient=RECIPIENT),
    )
    return parse_plan(text.encode())


def site(name: str, role: str, shares: Mapping[str, str]) -> str:
    return site_text(
        SiteEntry(
            party=name,
            tee="sgx",
            ports=None if role == "recipient" else ("127.0.0.1:7001", "127.0.0.1:7002"),
            custodian="127.0.0.1:7003",
            with_data=role == "worker",
            shares=shares,
        )
    )


def test_a_written_plan_names_every_key_of_its_parties() -> None:
    plan = written(ROLES)
    assert {p.name: p.state_share for p in plan.shareholders} == SHARES
    assert [p.data_key for p in plan.workers] == [data_key_of(2), data_key_of(3)]
    assert plan.recipients == (RECIPIENT, THEIR_RECIPIENT)
    assert plan.policy_of("rita").sgx[0].mr_enclave == (
        measurement_of("recipient").mr_enclave.hex()
    )
    assert plan.unpinned == ()


def test_a_written_plan_without_recipients_has_no_policy_for_them() -> None:
    plan = written({name: ROLES[name] for name in ("aggregator", "alice")})
    assert plan.policy.recipient is None
    assert plan.recipients == (RECIPIENT,)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text(st.characters(exclude_categories=["Cs"]))
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False, allow_infinity=False),
    )
)
@example({"config": "smile \U0001f600, \x7f, {depth} and \\"})
def test_a_written_plan_holds_any_options(options: dict[str, Option]) -> None:
    plan = written(ROLES, recipe=replace(DIGITS, options=options))
    # As text, because 1 is 1.0 is True.
    assert repr(plan.task.options) == repr(options)


@pytest.mark.parametrize(
    "recipe",
    [
        replace(DIGITS, options={"dropout": float("nan")}),
        replace(DIGITS, schedule="poly", schedule_settings={"dropout": float("inf")}),
    ],
)
def test_a_plan_is_never_written_with_what_is_no_number(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match="'dropout'") as caught:
        written(ROLES, recipe=recipe)
    assert caught.value.expected == "a finite number"


def test_a_written_plan_averages_gradients_unless_told_otherwise() -> None:
    training = written(ROLES).training
    assert (training.mode, training.wire) == ("sync-sgd", "float32")
    assert training.optimizer == SgdOptimizer(
        learning_rate=DIGITS.learning_rate,
        momentum=0.9,
        weight_decay=DIGITS.weight_decay,
    )
    assert training.schedule == CosineSchedule(warmup_rounds=DIGITS.warmup_rounds)


def test_a_written_plan_of_fedavg_makes_the_mean_of_the_workers_models() -> None:
    recipe = DIGITS.averaged(local_steps=8)
    training = written(ROLES, recipe=recipe).training
    assert (training.mode, training.rounds, training.local_steps) == ("fedavg", 25, 8)
    assert training.optimizer == SgdOptimizer(learning_rate=1.0)
    assert training.local_optimizer == LocalOptimizer(
        learning_rate=DIGITS.learning_rate,
        momentum=0.9,
        weight_decay=DIGITS.weight_decay,
    )


def test_a_written_plan_may_round_what_travels() -> None:
    plan = written(ROLES, recipe=replace(DIGITS, wire="bfloat16"))
    assert plan.training.wire == "bfloat16"
    assert plan.training.precision == DIGITS.precision


def test_a_written_site_says_where_the_other_shareholders_are() -> None:
    others = {"aggregator": "127.0.0.1:7004", "alice": "127.0.0.1:7005"}
    tree = tomllib.loads(site("bob", "worker", others))
    assert tree["shares"] == others
    assert tree["paths"] == {"runs": "../../runs", "data": "data.sealed"}
    assert tree["custodian"] == {"address": "127.0.0.1:7003"}
    assert tree["addresses"] == {
        "enrolment": "127.0.0.1:7001",
        "training": "127.0.0.1:7002",
    }


def test_a_written_site_without_shareholders_has_no_shares() -> None:
    tree = tomllib.loads(site("rita", "recipient", {}))
    assert "shares" not in tree
    assert "data" not in tree["paths"]
    assert "addresses" not in tree
