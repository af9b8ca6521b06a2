"""Whoever takes part sees means; nobody gets the update of one party.

The parties here are those that a plan may admit by identity: they say on the training
port whatever they like, and pool what they hear.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.federation_in_memory import Federation
from tests.support.in_a_round import Scene, four_of, in_a_round
from tests.support.open_server import refusal_code
from tests.support.plan_tree import by_identity, with_quorum
from tests.support.running import Run
from tests.support.single_updates import constant, messages_of, values_of
from tests.support.training_calls import (
    contribute,
    model_in,
    model_of,
    receive,
    refused,
    send,
    until,
)

from cloister.federation.layout import ModelBuffer

COLLUDERS = ("bob", "carol")
# Ten chunks: more than lies on the way to who takes none.
FEATURES = 400_000


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Two of four parties are there by identity, and pool what they see."""
    return four_of(
        tmp_path_factory.mktemp("four"),
        lambda tree: by_identity(tree, *COLLUDERS, colluders=2),
    )


@pytest.fixture(scope="module")
def three_of_four(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Rounds may end without one of four; bob may look at what he receives."""
    return four_of(
        tmp_path_factory.mktemp("three"),
        lambda tree: with_quorum(by_identity(tree, "bob", colluders=1), 3),
    )


async def all_train(
    scene: Scene, updates: dict[str, ModelBuffer], **losses: float
) -> bytes:
    """Has everybody send an update; returns the next model, as bob gets it."""
    models = await asyncio.gather(
        *(
            party.train(updates[name], loss_sum=losses.get(name, 1.0))
            for name, party in scene.parties.items()
        )
    )
    assert {header.round for header, _ in models} == {2}
    assert len({chunks for _, chunks in models}) == 1
    return models[1][1]


def learned(before: bytes, after: bytes, *, values: int) -> NDArray[np.float64]:
    """Returns the sum of all four updates, as whoever has two models gets at it."""
    old, new = (np.frombuffer(model, np.float32, values) for model in (before, after))
    return (old.astype(np.float64) - new) * 4


@pytest.mark.parametrize("size", [1000.0, 1.0, 2.0**-10])
def test_huge_updates_that_cancel_out_do_not_wipe_out_those_before_them(
    run: Run, four: Federation, tmp_path: Path, size: float
) -> None:
    """In float32, (alice + huge - huge) + dave would be dave's update alone."""

    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            port = scene.port
            before = port.coordinator.model.data.tobytes()
            alice, dave = (values_of(port, seed=n, scale=1e-5) for n in (1, 2))
            bob, carol = constant(port, size), constant(port, -size)
            after = await all_train(
                scene, {"alice": alice, "bob": bob, "carol": carol, "dave": dave}
            )
            total = learned(before, after, values=alice.parameters.size)
            # But for the rounding of the model's own parameters, it is of both.
            assert np.abs(total - alice.parameters - dave.parameters).max() < 2e-6
            for one in (alice, dave):
                assert np.abs(total - one.parameters).max() > 1e-5
            statistics = np.frombuffer(after[-alice.statistics.nbytes :], np.float64)
            both = (alice.statistics + dave.statistics) / 4
            assert np.abs(statistics - both).max() < 1e-15

    run(story())


def test_huge_losses_that_cancel_out_do_not_wipe_out_those_before_them(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            same = dict.fromkeys(scene.parties, constant(scene.port, 0.0))
            await all_train(
                scene, same, alice=13.37, bob=1e300, carol=-1e300, dave=7.25
            )
            [line] = scene.port.events("round")
            examples = 4 * scene.port.node.plan.training.batch_size
            assert line["loss"] == pytest.approx((13.37 + 7.25) / examples)

    run(story())


def test_who_asks_again_and_again_sees_one_model_of_a_round(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """Between two updates, the model that is out does not move."""

    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            port, bob = scene.port, scene["bob"]
            seen = {await model_of(receive(port, bob.channel))}
            calls = []
            for seed, name in enumerate(("alice", "dave", "carol"), 1):
                party = scene[name]
                update = values_of(port, seed=seed)
                calls.append(await party.send(party.messages(update)))
                seen.add(await model_of(receive(port, bob.channel)))
            assert seen == {port.coordinator.model.data.tobytes()}
            assert port.events("round") == []
            _, after = await bob.train(constant(port, 0.0))
            assert {await model_of(call) for call in calls} == {after}

    run(story())


def test_a_slow_download_ends_with_its_round_and_is_of_no_other_model(
    run: Run, three_of_four: Federation, tmp_path: Path
) -> None:
    """Dave leaves most of the model where it is while the others go on."""

    async def story() -> None:
        async with in_a_round(three_of_four, tmp_path, features=4 * FEATURES) as scene:
            port, machine = scene.port, scene.port.coordinator._machine
            before = port.coordinator.model.data.tobytes()
            slow = receive(port, scene["dave"].channel)
            opening = await slow.read()
            assert isinstance(opening, bytes)
            others = ("alice", "bob", "carol")
            trains = [
                asyncio.ensure_future(scene[name].train(constant(port, 1e-3)))
                for name in others
            ]
            await until(lambda: machine.counted == others)
            # The deadline passes.
            port.coordinator._expire(1)
            models = await asyncio.gather(*trains)
            assert {header.round for header, _ in models} == {2}
            got = model_in([opening])[1]
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - chunks
                while isinstance(chunk := await slow.read(), bytes):
                    got += chunk
            assert refusal_code(caught.value) == "model-superseded"
            assert 0 < len(got) < len(before)
            assert got == before[: len(got)]

    run(story())


def test_nobody_can_send_what_another_party_signed(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """Bob has every byte of alice's update, header and all, and calls it his own."""

    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            port, bob = scene.port, scene["bob"]
            hers = scene["alice"].messages(values_of(port, seed=1))
            call = contribute(bob.channel)
            await send(call, hers[:1])
            assert await refused(call) == "countersignature"
            assert port.audit.calls == [("bob", "countersignature")]
            assert port.coordinator._machine.counted == ()
            # Nor is it good for another round, where alice's own signature is old.
            same = dict.fromkeys(scene.parties, constant(port, 0.0))
            await all_train(scene, same)
            old = messages_of(port, bob.node, constant(port, 0.0), round_number=1)
            call = contribute(bob.channel)
            await send(call, old[:1])
            assert await refused(call) == "update-late"

    run(story())
