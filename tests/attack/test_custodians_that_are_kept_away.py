"""A host keeps nodes from their custodians, so that nothing is remembered.

Then it could train a run to its end, put everything back, and train it once more: with
other workers, or until the result pleases. Warrants alone do not prevent that, for they
last for a day.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import pytest
from tests.support.custodians import Office
from tests.support.federation_in_memory import Federation
from tests.support.plan_tree import WORKERS
from tests.support.running import Run, until
from tests.support.whole_run import Hooked, Scene, make_scene, sources, task

from cloister.custody.client import CustodianLine
from cloister.errors import CloisterError, ProtocolError
from cloister.federation import deposits, state
from cloister.federation.task import Task

Ends: TypeAlias = "dict[str, asyncio.Future[CloisterError | None]]"
PARTIES = ("aggregator", *WORKERS)
SILENCE = 3600.0  # the plan's default
TRIES = 20  # at a hundredth of a second


class Seconds:
    """A counter that goes as it should, and that somebody sets forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def scene(federation: Federation, tmp_path: Path, seconds: Seconds) -> Scene:
    made = make_scene(tmp_path / "run", federation, patience_seconds=0.5)
    return Scene(
        directory=made.directory,
        enrolment=made.enrolment,
        training=made.training,
        custodians=made.custodians,
        patience_seconds=made.patience_seconds,
        elapsed=seconds,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are looked at, and failures retried, without delay."""
    monkeypatch.setattr(deposits, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(deposits, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)  # a mark with every model


class Host:
    """All nodes of a run on one host, which stands before their custodians."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.offices: dict[str, Office] = {}
        self._loop = asyncio.get_running_loop()

    def log(self, party: str) -> str:
        path = self.scene.directory / "logs" / f"{party}.jsonl"
        return path.read_text() if path.exists() else ""

    def known(self, party: str) -> int | None:
        """Returns the rounds that a party's custodian knows of."""
        mark = self.offices[party].register.mark(self.scene.custodians.plan.run_id)
        return None if mark is None else mark.round

    async def keep_away(self, *parties: str) -> None:
        """Cuts parties' nodes off from their custodians."""
        for party in parties:
            await self.offices[party].shut()

    def cutting_off(self, *parties: str, at_round: int) -> Task:
        """Returns a task at whose round parties' nodes are cut off."""

        def cut() -> None:
            asyncio.run_coroutine_threadsafe(
                self.keep_away(*parties), self._loop
            ).result()

        return Hooked({at_round: cut})

    async def begin(
        self, stack: AsyncExitStack, *, away: tuple[str, ...], alices: Task
    ) -> Ends:
        """Starts every node; each has a warrant, and no more is let through to some."""
        scene, nodes = self.scene, self.scene.nodes()
        lines: dict[str, CustodianLine] = {}
        for party, node in nodes.items():
            office = scene.custodians.office(party)
            self.offices[party] = await stack.enter_async_context(office)
            line = self.offices[party].line(node)
            lines[party] = await stack.enter_async_context(line)
        await self.keep_away(*away)
        work: dict[str, Awaitable[object]] = {
            name: scene.work(
                nodes[name],
                alices if name == "alice" else task(),
                sources()[name],
                custodian=lines[name],
            )
            for name in WORKERS
        }
        work["aggregator"] = scene.serve(
            nodes["aggregator"], task(), custodian=lines["aggregator"]
        )
        return {party: asyncio.ensure_future(end_of(it)) for party, it in work.items()}


async def end_of(node: Awaitable[object]) -> CloisterError | None:
    """Returns why a node failed; None if it did not."""
    try:
        await node
    except CloisterError as error:
        return error
    return None


def code_of(end: CloisterError | None) -> str:
    assert end is not None
    return end.code


async def stop(ends: Ends) -> None:
    """Stops what still runs."""
    for end in ends.values():
        end.cancel()
    await asyncio.gather(*ends.values(), return_exceptions=True)


def rounds_known(scene: Scene) -> dict[str, int | None]:
    """Returns what every party's register on disk says."""
    marks = {party: scene.custodians.mark(party) for party in PARTIES}
    return {
        party: None if mark is None else mark.round for party, mark in marks.items()
    }


def test_a_server_whose_first_mark_does_not_arrive_shows_nobody_a_model(
    run: Run, scene: Scene, seconds: Seconds
) -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            host = Host(scene)
            ends = await host.begin(stack, away=("aggregator",), alices=task())
            await until(lambda: "deposit-failed" in host.log("aggregator"))
            await until(lambda: "waiting-for-server" in host.log("alice"))
            seconds.ahead += SILENCE
            error = await ends["aggregator"]
            assert isinstance(error, ProtocolError)
            assert error.code == "custodian-silent"
            assert "3600 s" in error.expected
            await stop(ends)

    run(story())
    assert scene.events("aggregator", "listening") == []
    assert rounds_known(scene) == dict.fromkeys(PARTIES)
    assert not scene.model_path.exists()


def test_a_worker_whose_first_mark_does_not_arrive_sends_no_update(
    run: Run, scene: Scene, seconds: Seconds
) -> None:
    async def story() -> None:
        async with AsyncExitStack() as stack:
            host = Host(scene)
            computed = threading.Event()
            alices = Hooked({1: computed.set})
            ends = await host.begin(stack, away=("alice",), alices=alices)
            tried: list[int] = []

            def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if computed.is_set():
                    tried.append(1)
                writer.close()

            address = host.offices["alice"].address
            async with await asyncio.start_server(hang_up, address.host, address.port):
                # She has an update, and time enough to send it.
                await until(lambda: len(tried) > TRIES)
                await until(lambda: host.known("aggregator") == host.known("bob") == 0)
            seconds.ahead += SILENCE
            assert code_of(await ends["alice"]) == "custodian-silent"
            await stop(ends)

    run(story())
    # Two workers had the model, and one update never came.
    assert rounds_known(scene) == {"aggregator": 0, "alice": None, "bob": 0}
    for party in PARTIES:
        assert scene.events(party, "round") == []
    assert not scene.model_path.exists()


def test_a_run_whose_custodians_are_kept_away_ends_with_its_nodes(
    run: Run, scene: Scene, seconds: Seconds
) -> None:
    """All rounds are trained in the time that nodes go on alone, and none is sealed."""

    async def story() -> None:
        async with AsyncExitStack() as stack:
            host = Host(scene)
            cut = host.cutting_off(*PARTIES, at_round=3)
            ends = await host.begin(stack, away=(), alices=cut)
            await until(lambda: all("last-mark-waits" in host.log(p) for p in WORKERS))
            seconds.ahead += SILENCE
            for error in await asyncio.gather(*ends.values()):
                assert isinstance(error, ProtocolError)
                assert error.code == "custodian-silent"

    run(story())
    for party in WORKERS:
        assert len(scene.events(party, "round")) == 12
        assert scene.events(party, "finished") == []
    assert not scene.model_path.exists()
    for known in rounds_known(scene).values():
        assert known is not None
        assert 0 < known < 12


@pytest.mark.parametrize("away", [("aggregator",), ("alice",)])
def test_a_run_cannot_be_trained_to_its_end_and_sealed_twice(
    run: Run, scene: Scene, seconds: Seconds, away: tuple[str, ...]
) -> None:
    """The host wants to choose between two models, so it keeps one custodian away.

    Then it puts everything back, and the server's own party is in league with it: it
    lets its custodian forget. Nothing was sealed, and the others' did not forget.
    """

    async def secretly() -> None:
        async with AsyncExitStack() as stack:
            host = Host(scene)
            cut = host.cutting_off(*away, at_round=3)
            ends = await host.begin(stack, away=(), alices=cut)
            await until(lambda: all("last-mark-waits" in host.log(p) for p in away))
            others = [party for party in PARTIES if party not in away]
            await until(lambda: {host.known(party) for party in others} == {12})
            seconds.ahead += SILENCE
            for party in away:
                assert code_of(await ends[party]) == "custodian-silent"
            await stop(ends)

    async def again() -> None:
        async with AsyncExitStack() as stack:
            ends = await Host(scene).begin(stack, away=(), alices=task())
            errors = await asyncio.gather(*ends.values())
            # Whoever knows that the run has ended refuses it from its start.
            assert "state-rolled-back" in {code_of(error) for error in errors}
            assert all(errors)

    run(secretly())
    assert not scene.model_path.exists()
    # The host has no older state; but it may leave the server without any. It takes the
    # log away as well: with that one no other beginning goes on.
    scene.place("aggregator").path.unlink()
    (scene.directory / "audit.jsonl").unlink()
    known = rounds_known(scene)
    for party in PARTIES:
        assert (known[party] == 12) == (party not in away)
    with scene.custodians.register("aggregator") as register:
        register.rewind(scene.custodians.plan.run_id, at=scene.custodians.clock())
    run(again())
    assert not scene.model_path.exists()
    assert {party: rounds_known(scene)[party] for party in WORKERS} == {
        party: known[party] for party in WORKERS
    }
