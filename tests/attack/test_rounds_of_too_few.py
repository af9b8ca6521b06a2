"""A mean over too few says what one party has; nobody gets to see one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.support.canaries import Canaries
from tests.support.federation_in_memory import Federation
from tests.support.in_a_round import Scene, four_of, in_a_round
from tests.support.open_server import admitted_channel
from tests.support.plan_tree import (
    Tree,
    add_worker,
    average,
    by_identity,
    plan_tree,
    put,
    toml_of,
    with_quorum,
)
from tests.support.running import Run
from tests.support.single_updates import (
    constant,
    messages_of,
    next_model,
    plant_number,
    reported,
    round_of,
)
from tests.support.training_calls import (
    Contributing,
    contribute,
    final_report,
    finish,
    refused,
    send,
    until,
)

from cloister.errors import ConfigError
from cloister.federation.coordinator import Coordinator
from cloister.plan.plan import parse_plan

LOSS = 0.7390851332151607
METRIC = 0.5671432904097838


def quorum(tree: Tree) -> Tree:
    return with_quorum(tree, 2)


def sampled(tree: Tree) -> Tree:
    return put(average(tree), ("rounds", "sample"), 2)


def both(tree: Tree) -> Tree:
    return with_quorum(average(tree), 2, sample=3)


@pytest.mark.parametrize("least", [quorum, sampled, both])
def test_no_plan_has_rounds_from_which_colluders_learn_an_update(
    least: Callable[[Tree], Tree],
) -> None:
    """Of four workers two may be a round: then one who looks has the other's."""
    tree = least(add_worker(add_worker(plan_tree(), "carol"), "dave"))
    parse_plan(toml_of(by_identity(tree, "bob", colluders=0)))
    for colluders in (1, 2):
        with pytest.raises(ConfigError) as caught:
            parse_plan(toml_of(by_identity(tree, "bob", colluders=colluders)))
        assert caught.value.code == "colluders-too-many"


@pytest.fixture(scope="module")
def three_of_four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three are enough; bob may look at what he receives. One round, then the end."""

    def change(tree: Tree) -> Tree:
        put(tree, ("training", "rounds"), 1)
        return with_quorum(by_identity(tree, "bob", colluders=1), 3)

    return four_of(tmp_path_factory.mktemp("three"), change)


async def train(scene: Scene, *names: str) -> list[Contributing]:
    """Has parties send updates; returns their calls, once these count."""
    coordinator, number = scene.port.coordinator, round_of(scene.port)
    update = constant(scene.port, 0.5)
    calls = [await scene[name].send(scene[name].messages(update)) for name in names]

    def counted() -> bool:
        there = set(names) <= set(coordinator._machine.counted)
        return there or round_of(scene.port) > number

    await until(counted)
    return calls


def test_whoever_keeps_others_away_gets_no_mean_of_two(
    run: Run, three_of_four: Federation, tmp_path: Path
) -> None:
    """The host lets only alice and bob through, and deadline after deadline pass."""

    async def story() -> None:
        async with in_a_round(three_of_four, tmp_path) as scene:
            port, coordinator = scene.port, scene.port.coordinator
            before = coordinator.model.data.tobytes()
            alice, _ = await train(scene, "alice", "bob")
            for _ in range(5):
                coordinator._expire(1)
                await asyncio.sleep(0)
            # Nor is a second node of bob's a third party.
            again = three_of_four.node("bob", epoch=2)
            async with admitted_channel(port, again) as channel:
                call = contribute(channel)
                await send(call, messages_of(port, again, constant(port, 0.0))[:1])
                assert await refused(call) == "update-repeated"
            assert coordinator.model.data.tobytes() == before
            assert (round_of(port), port.audit.rounds) == (1, [])
            assert port.events("round") == []
            # The third one ends the round at once, long past its deadline.
            [dave] = await train(scene, "dave")
            models = await asyncio.gather(next_model(alice), next_model(dave))
            assert {header.round for header, _ in models} == {2}
            [recorded] = port.audit.rounds
            assert [it.party for it in recorded.participants] == [
                "alice",
                "bob",
                "dave",
            ]

    run(story())


def _counts(coordinator: Coordinator, party: str) -> bool:
    return party in coordinator._machine.counted


def test_final_metrics_are_of_no_fewer_than_a_round(
    run: Run, three_of_four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with in_a_round(three_of_four, tmp_path) as scene:
            port, coordinator = scene.port, scene.port.coordinator
            calls = await train(scene, *scene.parties)
            await asyncio.gather(*map(next_model, calls))
            told = []
            for number, name in enumerate(("alice", "bob", "carol"), 1):
                party, found = scene[name], reported(accuracy=number / 7)
                last = final_report(port, party.node, found)
                told.append(asyncio.ensure_future(finish(party.channel, last)))
                if number < 3:
                    await until(partial(_counts, coordinator, name))
                    coordinator._expire(2)
                    assert coordinator.metrics is None
            await until(lambda: coordinator.metrics is not None)
            assert coordinator.metrics == pytest.approx({"accuracy": 6 / 7 / 3})
            coordinator.release()
            await asyncio.gather(*told)

    run(story())


def test_a_metric_that_one_party_reports_is_published_nowhere(
    run: Run, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Neither its value nor its name, which may be made of records; nor in a mean."""

    def change(tree: Tree) -> Tree:
        return put(tree, ("rounds", "evaluate_every"), 1)

    federation = four_of(tmp_path_factory.mktemp("four"), change)
    name = "patient-17-is-ill"
    found = {
        "alice": {"accuracy": 1.0, name: METRIC},
        "bob": {"accuracy": 0.0, "common": 1.0},
        "carol": {"accuracy": 1.0, "common": 1.0},
        "dave": {"accuracy": 0.0, "common": 1.0},
    }

    async def story() -> None:
        canaries = Canaries()
        canaries.plant("name", name.encode())
        plant_number(canaries, "metric", METRIC)
        plant_number(canaries, "mean", METRIC / 4)
        async with in_a_round(federation, tmp_path) as scene:
            port = scene.port
            calls = await train(scene, *scene.parties)
            await asyncio.gather(*map(next_model, calls))
            calls = []
            for party in scene.parties.values():
                sums = found[party.node.party]
                messages = party.messages(
                    constant(port, 0.0), evaluation=reported(1, **sums)
                )
                calls.append(await party.send(messages))
            await asyncio.gather(*map(next_model, calls))
            [line] = port.events("evaluation")
            assert line["metrics"] == {"accuracy": 0.5}
            [differ] = port.events("metrics-differ")
            assert (differ["published"], differ["left_out"]) == (1, 2)
        assert canaries.found_below(tmp_path) == {}

    run(story())
