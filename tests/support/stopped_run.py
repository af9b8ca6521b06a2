"""A run that was stopped in its middle, as its host has it: files, to be copied."""

from __future__ import annotations

import asyncio
import shutil
import threading
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.addresses import free_addresses
from tests.support.federation_in_memory import Federation
from tests.support.plan_tree import WORKERS
from tests.support.running import until
from tests.support.whole_run import Hooked, Scene, make_scene, sources, task

from cloister.errors import CloisterError
from cloister.federation import state

# Rounds completed when the host takes a copy of the state, and when the run is stopped.
EARLIER, NEWEST = 3, 7
_NAME = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedRun:
    """A run that nobody trains any more.

    Attributes:
        scene: Where it lies; nothing there is changed.
        earlier: The server's state file as it was after round `EARLIER`.
    """

    scene: Scene
    earlier: bytes

    def copy(self, root: Path, *, patience_seconds: float | None = None) -> Scene:
        """Copies everything of it: run directory, states, custodians' registers.

        Args:
            root: Where to.
            patience_seconds: Everybody's patience; by default the scene's.
        """
        for path in self.scene.directory.parent.glob(f"{_NAME}*"):
            shutil.copytree(path, root / path.name)
        enrolment, training = free_addresses(2)
        custodians = self.scene.custodians
        return replace(
            self.scene,
            directory=root / _NAME,
            enrolment=enrolment,
            training=training,
            custodians=replace(custodians, directory=root / custodians.directory.name),
            patience_seconds=patience_seconds or self.scene.patience_seconds,
        )


def cloned(scene: Scene, name: str) -> Scene:
    """Copies run directory and states, as a host can; the custodians are the same."""
    other = scene.directory.with_name(name)
    shutil.copytree(scene.directory, other)
    shutil.copytree(state_directory(scene), other.with_name(f"{name}-state"))
    enrolment, training = free_addresses(2)
    return replace(scene, directory=other, enrolment=enrolment, training=training)


def state_directory(scene: Scene) -> Path:
    """Where a scene's states lie."""
    return scene.place("aggregator").path.parent


async def stop_in_the_middle(root: Path, federation: Federation) -> StoppedRun:
    """Trains to round `NEWEST`, of which every custodian is told; then all stops."""
    scene = make_scene(root / _NAME, federation)
    path, copies = scene.place("aggregator").path, list[bytes]()
    held, holding = threading.Event(), threading.Event()

    def copy() -> None:
        copies.append(path.read_bytes())

    def hold() -> None:
        holding.set()
        assert held.wait(10)

    hooked = Hooked({EARLIER + 1: copy, NEWEST + 1: hold})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "MARK_SECONDS", 0.0)  # a mark with every model
        async with AsyncExitStack() as offices:
            ends, registers = [], []
            for party in ("aggregator", *WORKERS):
                node = scene.node(party)
                office = await offices.enter_async_context(
                    scene.custodians.office(party)
                )
                line = await offices.enter_async_context(office.line(node))
                registers.append(office.register)
                ends.append(
                    asyncio.ensure_future(
                        scene.serve(node, task(), custodian=line)
                        if party == "aggregator"
                        else scene.work(
                            node,
                            hooked if party == "alice" else task(),
                            sources()[party],
                            custodian=line,
                        )
                    )
                )
            await until(holding.is_set)
            run_id = federation.plan.run_id
            await until(
                lambda: all(
                    mark is not None and mark.round == NEWEST
                    for mark in (register.mark(run_id) for register in registers)
                )
            )
            held.set()
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
    [earlier] = copies
    return StoppedRun(scene=scene, earlier=earlier)


async def refusal_of(scene: Scene) -> CloisterError:
    """Returns why a server does not go on with what a scene's files are."""
    with pytest.raises(CloisterError) as caught:
        await scene.serve(scene.node("aggregator"), task())
    return caught.value
