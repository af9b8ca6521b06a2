"""A host copies a server's directory, and starts a server in each copy.

Both open the state, for both are the same party's accepted node and get the same key.
Their custodian counts them, and remembers: one history comes of the state, and the
other copy is of no use any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.plan_tree import WORKERS
from tests.support.running import Run, until
from tests.support.stopped_run import (
    NEWEST,
    StoppedRun,
    cloned,
    refusal_of,
    state_directory,
)
from tests.support.whole_run import Hooked, Scene, sources, task, whole_run

from cloister.errors import CloisterError
from cloister.federation import state

PATIENCE_SECONDS = 0.5


@pytest.fixture
def copies(stopped: StoppedRun, tmp_path: Path) -> tuple[Scene, Scene]:
    """Two directories with the same state, and the same custodians behind both."""
    one = stopped.copy(tmp_path, patience_seconds=PATIENCE_SECONDS)
    return one, cloned(one, "two")


def trained(scene: Scene) -> list[object]:
    """Returns the rounds that the servers of a directory trained, one after another."""
    return [event["round"] for event in scene.events("aggregator", "round")]


def kept(scene: Scene) -> dict[str, bytes]:
    """Returns what lies in a directory of states."""
    return {path.name: path.read_bytes() for path in state_directory(scene).iterdir()}


async def ends_of(*nodes: Awaitable[object]) -> list[object]:
    """Returns how nodes ended: the code of an error, or what they returned."""
    ends = await asyncio.gather(*nodes, return_exceptions=True)
    return [it.code if isinstance(it, CloisterError) else it for it in ends]


def test_two_servers_with_half_of_the_workers_each_train_nothing(
    run: Run, copies: tuple[Scene, Scene]
) -> None:
    one, two = copies
    before = kept(one)

    async def story() -> list[object]:
        servers = [one.node("aggregator") for _ in copies]
        async with (
            one.custodians.office("aggregator") as office,
            office.line(servers[0]) as first,
            office.line(servers[1]) as second,
        ):
            return await ends_of(
                one.serve(servers[0], task(), custodian=first),
                two.serve(servers[1], task(), custodian=second),
                one.work(one.node("alice"), task(), sources()["alice"]),
                two.work(two.node("bob"), task(), sources()["bob"]),
            )

    ends = run(story())
    # The older one was refused before it listened; the newer one lacks a worker.
    assert ends[:2] == ["warrant-superseded", "worker-missing"]
    assert kept(one) == kept(two) == before
    assert trained(one) == trained(two) == list(range(1, NEWEST + 1))

    # The newer one's history is the run's; it goes on there, and there alone.
    run(whole_run(replace(two, patience_seconds=20.0)))
    assert run(refusal_of(one)).code == "audit-cut"
    assert kept(one) == before
    assert two.model_path.exists()
    assert not one.model_path.exists()


def test_of_a_copy_that_fell_behind_no_server_is_made(
    run: Run,
    copies: tuple[Scene, Scene],
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is started while the other trains; with the other's log it fares no better."""
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)  # a mark with every model
    one, two = (replace(it, patience_seconds=20.0) for it in copies)
    held, holding = threading.Event(), threading.Event()
    before = kept(two)

    def hold() -> None:
        holding.set()
        assert held.wait(10)

    async def story() -> None:
        older, newer = one.node("aggregator"), two.node("aggregator")
        hooked = Hooked({NEWEST + 2: hold})
        async with (
            one.custodians.office("aggregator") as office,
            office.line(older) as line,
        ):
            ends = asyncio.ensure_future(
                ends_of(
                    one.serve(older, task(), custodian=line),
                    one.work(one.node("alice"), hooked, sources()["alice"]),
                    one.work(one.node("bob"), task(), sources()["bob"]),
                )
            )
            await until(holding.is_set)
            run_id = federation.plan.run_id
            await until(
                lambda: (
                    (mark := office.register.mark(run_id)) is not None
                    and mark.round == NEWEST + 1
                )
            )
            async with office.line(newer) as other:
                [code] = await ends_of(two.serve(newer, task(), custodian=other))
                assert code == "audit-cut"
            held.set()
            # Its warrant was given to the newer one.
            assert (await ends)[0] == "warrant-superseded"

    try:
        run(story())
    finally:
        held.set()
    log = one.directory / "audit.jsonl"
    (two.directory / log.name).write_bytes(log.read_bytes())
    assert run(refusal_of(two)).code == "state-rolled-back"
    assert kept(two) == before
    assert trained(two) == list(range(1, NEWEST + 1))

    # Where the newest state is the run goes on; no round of it was trained elsewhere.
    run(whole_run(one))
    rounds = federation.plan.training.rounds
    assert set(trained(one)) == set(range(1, rounds + 1))
    assert one.model_path.exists()
    assert not two.model_path.exists()
    for party in ("aggregator", *WORKERS):
        mark = one.custodians.mark(party)
        assert mark is not None
        assert mark.round == rounds
