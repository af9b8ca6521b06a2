"""An update is in the sum or it is gone: on disk it never was, in memory it is no more.

Memory is what the garbage collector reaches; Python does not overwrite what is freed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.support.canaries import Canaries, said_by
from tests.support.federation_in_memory import Federation
from tests.support.in_a_round import Scene, four_of, in_a_round
from tests.support.plan_tree import Tree, with_quorum
from tests.support.running import Run
from tests.support.single_updates import (
    Veiled,
    constant,
    holders_of,
    next_model,
    others_held,
    plant_number,
    plant_values,
    updates_held,
    values_of,
    veiled,
    veiled_bytes,
)
from tests.support.training_calls import (
    Contributing,
    contribute,
    refused,
    send,
    until,
    wanted,
)

from cloister.errors import ProtocolError

LOSS = 0.7390851332151607
# Made before any test runs, as most of the program's own lists are.
_KEEPS: list[bytes] = []


def as_it_is(tree: Tree) -> Tree:
    return tree


@pytest.fixture(scope="module", params=["all", "three"])
def four(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Federation:
    """Four parties; everybody contributes, or three are enough."""
    change: dict[str, Callable[[Tree], Tree]] = {
        "all": as_it_is,
        "three": lambda tree: with_quorum(tree, 3),
    }
    return four_of(tmp_path_factory.mktemp("four"), change[request.param])


class Victim:
    """Alice, whose update is looked for."""

    def __init__(self, scene: Scene, directory: Path) -> None:
        self.canaries = Canaries()
        self._scene = scene
        self._others = others_held()
        self._directory = directory
        plant_number(self.canaries, "loss", LOSS)

    def update(self) -> tuple[list[bytes], Veiled]:
        """Returns her update as messages, and what to look for."""
        values = values_of(self._scene.port, seed=1)
        plant_values(self.canaries, "update", values)
        messages = self._scene["alice"].messages(values, loss_sum=LOSS)
        return messages, veiled(values)

    async def sent(self) -> tuple[Contributing, Veiled]:
        """Sends it; it counts when this returns."""
        messages, secret = self.update()
        call = await self._scene["alice"].send(messages)
        machine = self._scene.port.coordinator._machine
        await until(lambda: "alice" in machine.counted)
        return call, secret

    def updates(self) -> list[object]:
        """Returns all updates that the server holds."""
        return [*updates_held(but=self._others)]

    async def is_forgotten(self, secret: Veiled) -> None:
        """Waits until nothing holds her update; looks through all files."""
        await until(lambda: not (self.updates() or holders_of([secret])))
        assert self.canaries.found_below(self._directory) == {}


async def others_train(scene: Scene) -> None:
    names = [name for name in scene.parties if name != "alice"]
    update = constant(scene.port, 0.5)
    models = await asyncio.gather(*(scene[name].train(update) for name in names))
    assert {header.round for header, _ in models} == {2}


@pytest.mark.parametrize("keeps", [_KEEPS, None], ids=["old", "new"])
def test_the_search_looks_into_what_is_older_than_it(keeps: list[bytes] | None) -> None:
    keeps = [] if keeps is None else keeps
    secret = bytearray(np.random.default_rng(20_261_122).bytes(24))
    looked_for = veiled_bytes(bytes(secret))
    assert holders_of([looked_for]) == []
    keeps.append(bytes(secret) + b"and more")
    assert holders_of([looked_for]) == ["list"]
    keeps.clear()


def test_a_round_that_is_over_leaves_nothing_of_an_update(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            alice = Victim(scene, tmp_path)
            call, secret = await alice.sent()
            await others_train(scene)
            await alice.is_forgotten(secret)
            call.cancel()
            [line] = scene.port.events("round")
            examples = 4 * scene.port.node.plan.training.batch_size
            assert line["loss"] == pytest.approx((LOSS + 3) / examples)

    run(story())


def test_a_run_that_fails_in_a_round_keeps_no_update(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """The server may live on for a while, to tell everybody why."""

    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            alice, coordinator = Victim(scene, tmp_path), scene.port.coordinator
            call, secret = await alice.sent()
            await coordinator.fail(ProtocolError("no more", code="no-more"))
            assert await refused(call) == "no-more"
            await alice.is_forgotten(secret)

    run(story())


def test_training_that_diverges_keeps_no_update_and_quotes_none(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """What the next model cannot be made of is in the frames of what failed."""

    async def story() -> None:
        async with in_a_round(four, tmp_path) as scene:
            alice, coordinator = Victim(scene, tmp_path), scene.port.coordinator
            coordinator.model.parameters[-1] = np.inf
            call, secret = await alice.sent()
            update = constant(scene.port, 0.5)
            calls = [
                await scene[name].send(scene[name].messages(update))
                for name in ("bob", "carol", "dave")
            ]
            for it in (call, *calls):
                with pytest.raises(grpc.aio.AioRpcError):
                    await next_model(it)
            failure = coordinator.failure
            assert failure is not None
            assert failure.code == "training-diverged"
            assert alice.canaries.found_in("\n".join(said_by(failure))) == set()
            assert failure.__traceback__ is None
            await alice.is_forgotten(secret)

    run(story())


def test_a_withdrawn_update_is_gone_at_once(
    run: Run, four: Federation, tmp_path: Path
) -> None:
    """Alice ends her call with all of her update but its last chunk."""

    async def story() -> None:
        async with in_a_round(four, tmp_path, features=100_000) as scene:
            alice, port = Victim(scene, tmp_path), scene.port
            (header, *chunks), secret = alice.update()
            call = contribute(scene["alice"].channel)
            await send(call, [header])
            await wanted(call)
            await send(call, chunks[:-1])
            size = sum(map(len, chunks[:-1]))
            del chunks
            await until(lambda: port.coordinator.traffic.received == size)
            assert alice.updates()
            assert holders_of([secret])
            call.cancel()
            await alice.is_forgotten(secret)
            assert port.coordinator._machine.counted == ()
            # Nor did she stop anybody: she may come again.
            await alice.sent()
            await others_train(scene)

    run(story())


def test_an_update_that_comes_too_late_is_gone_at_once(
    run: Run, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    federation = four_of(
        tmp_path_factory.mktemp("three"), lambda tree: with_quorum(tree, 3)
    )

    async def story() -> None:
        async with in_a_round(federation, tmp_path, features=100_000) as scene:
            alice, port = Victim(scene, tmp_path), scene.port
            (header, *chunks), secret = alice.update()
            call = contribute(scene["alice"].channel)
            await send(call, [header])
            await wanted(call)
            await send(call, chunks[:-1])
            del chunks
            waiting = asyncio.ensure_future(others_train(scene))
            machine = port.coordinator._machine
            await until(lambda: machine.counted == ("bob", "carol", "dave"))
            port.coordinator._expire(1)
            await waiting
            assert await refused(call) == "update-late"
            await alice.is_forgotten(secret)
            [recorded] = port.audit.rounds
            assert [it.party for it in recorded.participants] == [
                "bob",
                "carol",
                "dave",
            ]
            assert port.audit.calls == []  # to be late is no fault

    run(story())
