from __future__ import annotations

import pytest
from tests.unit.workloads.darknet_texts import PLINIUS_NET, with_net

from cloister.errors import ConfigError
from cloister.federation.strategies.schedules import Poly
from cloister.plan.training import (
    ConstantSchedule,
    PolySchedule,
    Schedule,
    SgdOptimizer,
    StepSchedule,
)
from cloister.workloads.darknet_config import parse_darknet
from cloister.workloads.darknet_training import DarknetTraining, training_of


def training(*lines: str) -> DarknetTraining:
    return training_of(parse_darknet(with_net("max_batches=20", *lines)))


def test_what_plinius_wants_is_a_plans_poly_schedule() -> None:
    layers = "[conn]\noutput=10\n[softmax]"
    assert training_of(parse_darknet(PLINIUS_NET + layers)) == DarknetTraining(
        batch_size=128,
        rounds=500,
        optimizer=SgdOptimizer(learning_rate=0.1, momentum=0.9, weight_decay=0.0005),
        schedule=PolySchedule(power=4),
    )


@pytest.mark.parametrize(
    ("lines", "schedule"),
    [
        ((), ConstantSchedule()),
        (("policy=poly", "power=2.5"), PolySchedule(power=2.5)),
        (("policy=step", "step=7", "scale=.1"), StepSchedule(every_rounds=7)),
        (("policy=step", "step=7"), ConstantSchedule()),
        (("policy=exp", "gamma=.99"), StepSchedule(every_rounds=1, factor=0.99)),
        (("policy=exp",), ConstantSchedule()),
        (("burn_in=5", "power=1"), ConstantSchedule(warmup_rounds=5)),
    ],
)
def test_policies_that_a_plan_has_are_said_in_its_words(
    lines: tuple[str, ...], schedule: Schedule
) -> None:
    assert training(*lines).schedule == schedule


def test_darknets_poly_is_the_plans_one_step_later() -> None:
    rounds, power = 500, 4
    ours = Poly(rounds=rounds, power=power)
    for number in (1, 2, 250, 499):
        darknets = (1 - number / rounds) ** power  # `get_current_rate`, after `seen +=`
        assert ours.factor(number + 1) == pytest.approx(darknets, rel=1e-12)
    assert ours.factor(1) == 1


@pytest.mark.parametrize(
    "line",
    [
        *("policy=sigmoid", "policy=random", "burn_in=5", "learning_rate=0"),
        *("learning_rate=-1", "momentum=1", "momentum=-.9", "decay=1", "decay=-1"),
    ],
)
def test_what_a_plan_cannot_say_is_refused_by_its_line(line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        training(line)
    assert caught.value.code == "darknet-config"
    assert caught.value.what.startswith("line 6 ")


@pytest.mark.parametrize(
    "lines",
    [
        ("policy=poly", "power=0"),
        ("policy=step", "scale=2"),
        ("policy=exp", "gamma=0"),
        ("policy=constant", "burn_in=5"),
        ("power=1", "burn_in=5", "policy=poly"),
        ("scales=.1,.1", "steps=5,10", "policy=steps"),
    ],
)
def test_a_schedule_that_a_plan_does_not_have_is_refused(
    lines: tuple[str, ...],
) -> None:
    with pytest.raises(ConfigError, match=r"line [678]") as caught:
        training(*lines)
    assert caught.value.code == "darknet-config"


def test_a_configuration_without_an_end_says_no_rounds() -> None:
    with pytest.raises(ConfigError, match="how long"):
        training_of(parse_darknet(with_net()))
