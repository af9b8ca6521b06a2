"""Whole runs with every party's custodian: what it knows, and what it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.custodians import Office
from tests.support.federation_in_memory import Federation, HandClock
from tests.support.plan_tree import WORKERS
from tests.support.registers import shown_by
from tests.support.run_audit import entries_of, links_of
from tests.support.running import Run
from tests.support.training_calls import until
from tests.support.whole_run import (
    Hooked,
    Scene,
    make_scene,
    sources,
    task,
    whole_run,
)

from cloister.custody.client import CustodianLine
from cloister.errors import (
    CloisterError,
    ConfigError,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.federation import deposits, membership, state, warranting
from cloister.federation.audit_records import (
    RoundCompleted,
    RunFailed,
    WarrantRenewed,
)
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.warranting import seconds_to_renewal
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.sections import Predecessor
from cloister.ratls.mark import Mark
from cloister.storage.model_vault import open_model

PARTIES = ("aggregator", *WORKERS)
# TLS looks at the real clock, so what is to be in force lasts for longer than tests.
HOUR = timedelta(hours=1)


def opened(scene: Scene) -> dict[str, NDArray[np.generic]]:
    identity = scene.custodians.federation.owner
    return open_model(scene.model_path, identity=identity).arrays


def assert_same_bits(one: Scene, other: Scene) -> None:
    before, after = opened(one), opened(other)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes()


async def error_of(node: Awaitable[object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        await node
    return caught.value


def long_plan(federation: Federation) -> Plan:
    """Returns the plan, but for a run that somebody has to end."""
    training = msgspec.structs.replace(federation.plan.training, rounds=1_000_000)
    return msgspec.structs.replace(federation.plan, training=training)


@pytest.fixture(scope="module")
def finished(
    runner: asyncio.Runner,
    federation: Federation,
    tmp_path_factory: pytest.TempPathFactory,
) -> Scene:
    scene = make_scene(tmp_path_factory.mktemp("run"), federation)
    runner.run(whole_run(scene))
    return scene


@pytest.fixture
def scene(federation: Federation, tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "run", federation, patience_seconds=5)


def test_every_custodian_knows_how_far_the_run_has_come(finished: Scene) -> None:
    marks = {party: finished.custodians.mark(party) for party in PARTIES}
    known = marks["aggregator"]
    assert known is not None
    assert (known.round, known.server_epoch) == (12, 1)
    workers = {marks[party] for party in WORKERS}
    # The server's party knows of the model's end, too, which is recorded last.
    [of_workers] = workers
    assert of_workers is not None
    head = bytes.fromhex(links_of(finished.directory)[-1].head)
    assert known == msgspec.structs.replace(of_workers, audit_head=head)
    assert of_workers.audit_head not in {None, head}
    for party in PARTIES:
        names = {event["event"] for event in finished.events(party)}
        assert not names & {"deposit-failed", "last-mark-waits"}


def test_the_same_run_elsewhere_has_the_same_bits_and_states_that_are_its_own(
    run: Run, finished: Scene, scene: Scene
) -> None:
    """A digest names one sealing of a state: nobody else's state has it."""
    run(whole_run(scene))
    assert_same_bits(finished, scene)
    states = [
        {mark.state for party in PARTIES if (mark := it.custodians.mark(party))}
        for it in (finished, scene)
    ]
    assert [len(it) for it in states] == [1, 1]
    assert states[0] != states[1]


def test_a_run_that_is_over_is_not_begun_again(run: Run, finished: Scene) -> None:
    before = finished.files()
    length = len(links_of(finished.directory))
    error = run(error_of(finished.serve(finished.node("aggregator"), task())))
    assert isinstance(error, ConfigError)
    assert error.code == "run-exists"
    assert finished.files() == before
    assert len(links_of(finished.directory)) == length


@pytest.mark.parametrize("number", [0, 7])
def test_a_run_that_somebody_knows_of_is_not_started_over(
    run: Run, scene: Scene, number: int
) -> None:
    mark = Mark(round=number, state=b"\7" * 32, server_epoch=1, server_key=bytes(32))
    known = scene.custodians.remember("aggregator", mark)
    error = run(error_of(scene.serve(scene.node("aggregator"), task())))
    assert isinstance(error, ConfigError)
    assert error.code == "state-missing"
    assert f"round {number}" in error.expected
    assert known.state.hex() in error.expected
    # It ended before it listened.
    names = [event["event"] for event in scene.events("aggregator")]
    assert names == ["warranted", "failed"]
    assert scene.custodians.mark("aggregator") == known
    assert scene.files() == ["audit.jsonl", "logs/aggregator.jsonl"]
    assert not scene.place("aggregator").path.exists()


def test_a_server_that_fell_before_its_first_round_was_complete_may_begin_again(
    run: Run, finished: Scene, scene: Scene
) -> None:
    def fail() -> NoReturn:
        raise ValueError("no power")

    async def story() -> None:
        first = scene.nodes()
        serving = asyncio.ensure_future(scene.serve(first["aggregator"], task()))
        working = [
            error_of(scene.work(first[name], Hooked({1: fail}), sources()[name]))
            for name in WORKERS
        ]
        for error in await asyncio.gather(*working):
            assert error.code == "task-failed"
        log = scene.directory / "logs" / "aggregator.jsonl"
        await until(lambda: "peer-admitted" in log.read_text())
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await whole_run(scene)

    run(story())
    known = scene.custodians.mark("alice")
    assert known is not None
    assert (known.round, known.server_epoch) == (12, 2)
    assert_same_bits(finished, scene)


def test_a_plan_that_goes_on_from_a_state_says_that_it_is_missing(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    digest = f"sha256:{64 * 'a'}"
    before = Predecessor(plan=digest, state=digest, round=3)
    plan = msgspec.structs.replace(federation.plan, predecessor=before)
    scene = make_scene(tmp_path / "run", federation, plan=plan)
    error = run(error_of(scene.serve(scene.node("aggregator"), task())))
    assert isinstance(error, ConfigError)
    assert error.code == "state-missing"
    assert scene.files() == ["audit.jsonl", "logs/aggregator.jsonl"]


async def run_until(scene: Scene, event: str, *, times: int) -> Mark:
    """Has a run's server stopped in good order; returns what its party knows then.

    Args:
        scene: The run.
        event: What the server is to say before.
        times: How often.
    """
    nodes = scene.nodes()
    serving = asyncio.ensure_future(scene.serve(nodes["aggregator"], task()))
    working = [
        asyncio.ensure_future(scene.work(nodes[name], task(), sources()[name]))
        for name in (WORKERS if event == "round" else ())
    ]
    log = scene.directory / "logs" / "aggregator.jsonl"
    await until(
        lambda: log.exists() and len(scene.events("aggregator", event)) >= times
    )
    for node in (*working, serving):
        node.cancel()
    await asyncio.gather(serving, *working, return_exceptions=True)
    known = scene.custodians.mark("aggregator")
    assert known is not None
    return known


def amended(scene: Scene, known: Mark) -> Plan:
    """Returns the plan that goes on from what a party knows."""
    plan = scene.custodians.plan
    before = Predecessor(
        plan=format_digest(plan_hash(plan)),
        state=format_digest(known.state),
        round=known.round,
    )
    return msgspec.structs.replace(plan, predecessor=before)


@pytest.mark.parametrize(
    ("event", "least"),
    [pytest.param("listening", 0, marks=pytest.mark.long), ("round", 3)],
)
def test_an_amended_plan_goes_on_from_the_state_of_the_server_that_was_stopped(
    run: Run,
    federation: Federation,
    finished: Scene,
    tmp_path: Path,
    event: str,
    least: int,
) -> None:
    """Its newest state, not that of the last mark: a stop in good order states it."""
    before = make_scene(tmp_path / "before", federation)
    known = run(run_until(before, event, times=max(least, 1)))
    rounds = [
        it for it in entries_of(before.directory) if isinstance(it, RoundCompleted)
    ]
    assert known.round == len(rounds) >= least
    [failed] = [it for it in entries_of(before.directory) if isinstance(it, RunFailed)]
    assert failed.state == known.state.hex()
    verify_audit(links_of(before.directory), anchors=Anchors(), heads=before.heads())

    former, plan = before.place("aggregator"), amended(before, known)
    scene = make_scene(tmp_path / "after", federation, plan=plan)
    run(whole_run(scene, former=former))
    assert_same_bits(finished, scene)
    verify_audit(links_of(scene.directory), anchors=Anchors(), heads=scene.heads())
    [resumed] = scene.events("aggregator", "state-resumed")
    assert (resumed["round"], resumed["state"]) == (known.round, known.state.hex())

    for digest, code in ((bytes(32), "state-differs"), (known.state, "state-missing")):
        other = amended(before, msgspec.structs.replace(known, state=digest))
        scene = make_scene(tmp_path / code, federation, plan=other)
        place = former if code == "state-differs" else scene.place("bob")
        serving = scene.serve(scene.node("aggregator"), task(), former=place)
        assert run(error_of(serving)).code == code
        assert scene.custodians.mark("aggregator") is None


def test_workers_refuse_a_server_that_starts_over_behind_their_marks(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation, patience_seconds=1.0)
    run(whole_run(scene))
    # Nothing is left of it, as on a new machine.
    scene.model_path.unlink()
    (scene.directory / "audit.jsonl").unlink()
    scene.place("aggregator").path.unlink()
    known = scene.custodians.mark("alice")
    # The server's own party lets it go back; nobody else does.
    with scene.custodians.register("aggregator") as register:
        register.rewind(federation.plan.run_id, at=scene.custodians.clock())

    async def story() -> None:
        nodes = scene.nodes()
        server, *workers = await asyncio.gather(
            error_of(scene.serve(nodes["aggregator"], task())),
            *(
                error_of(scene.work(nodes[name], task(), sources()[name]))
                for name in WORKERS
            ),
        )
        assert server.code == "worker-missing"
        for error in workers:
            assert isinstance(error, VerificationError)
            assert error.code == "state-rolled-back"
            assert error.got == "round 0"

    run(story())
    assert scene.custodians.mark("alice") == known
    for party in WORKERS:
        assert len(scene.events(party, "round")) == 12
    assert not scene.model_path.exists()


def test_a_worker_refuses_a_server_with_another_state_of_the_round_it_knows(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation, patience_seconds=1.0)
    forged = Mark(round=0, state=b"\7" * 32, server_epoch=1, server_key=bytes(32))
    scene.custodians.remember("alice", forged)
    # The server that alice knows is gone; this one is the next.
    with scene.custodians.register("aggregator") as register:
        node = federation.node("aggregator")
        key = node.identity.tls_spki
        register.grant(
            shown_by(federation.plan, key, party="aggregator"),
            collateral=None,
            at=node.clock(),
            life=timedelta(hours=1),
        )

    async def story() -> None:
        nodes = scene.nodes()
        alice, *_ = await asyncio.gather(
            error_of(scene.work(nodes["alice"], task(), sources()["alice"])),
            error_of(scene.work(nodes["bob"], task(), sources()["bob"])),
            error_of(scene.serve(nodes["aggregator"], task())),
        )
        assert isinstance(alice, VerificationError)
        assert alice.code == "state-forked"

    run(story())
    assert scene.custodians.mark("alice") == forged
    assert scene.events("alice", "round") == []


def test_a_worker_that_died_comes_back_to_the_state_its_party_knows(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    finished: Scene,
    scene: Scene,
) -> None:
    # A mark with every model, so that the worker meets the very round that it knows.
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)

    def fail() -> NoReturn:
        raise ValueError("no power")

    async def story() -> None:
        nodes = scene.nodes()
        rest = asyncio.gather(
            scene.serve(nodes["aggregator"], task()),
            scene.work(nodes["bob"], task(), sources()["bob"]),
        )
        broken = Hooked({5: fail})
        error = await error_of(scene.work(nodes["alice"], broken, sources()["alice"]))
        assert error.code == "task-failed"
        await scene.work(scene.node("alice"), task(), sources()["alice"])
        await rest

    run(story())
    known = scene.custodians.mark("alice")
    assert known is not None
    assert known.round == 12
    assert_same_bits(finished, scene)


def test_a_worker_that_comes_back_without_its_custodian_sends_no_update(
    run: Run, monkeypatch: pytest.MonkeyPatch, finished: Scene, scene: Scene
) -> None:
    """In the middle of a run the server says no state; its party's own mark counts."""
    monkeypatch.setattr(deposits, "RETRY_SECONDS", 0.01)

    def fail() -> NoReturn:
        raise ValueError("no power")

    async def story() -> None:
        nodes, again = scene.nodes(), scene.node("alice")
        rest = asyncio.gather(
            scene.serve(nodes["aggregator"], task()),
            scene.work(nodes["bob"], task(), sources()["bob"]),
        )
        broken = Hooked({5: fail})
        error = await error_of(scene.work(nodes["alice"], broken, sources()["alice"]))
        assert error.code == "task-failed"
        async with (
            scene.custodians.office("alice") as office,
            office.line(again) as line,
        ):
            await office.shut()
            working = asyncio.ensure_future(
                scene.work(again, task(), sources()["alice"], custodian=line)
            )
            log = scene.directory / "logs" / "alice.jsonl"
            await until(lambda: "deposit-failed" in log.read_text())
            assert len(scene.events("bob", "round")) == 4
            await office.open()
            await working
        await rest

    run(story())
    assert_same_bits(finished, scene)


def test_a_server_whose_place_was_taken_stops_and_tells_its_workers(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation, plan=long_plan(federation))

    async def story() -> None:
        nodes = scene.nodes()
        async with (
            scene.custodians.office("aggregator") as office,
            office.line(nodes["aggregator"]) as line,
        ):
            serving = error_of(scene.serve(nodes["aggregator"], task(), custodian=line))
            alice = error_of(scene.work(nodes["alice"], task(), sources()["alice"]))
            ends = [asyncio.ensure_future(it) for it in (serving, alice)]
            log = scene.directory / "logs" / "aggregator.jsonl"
            await until(lambda: log.exists() and "peer-admitted" in log.read_text())
            async with office.line(scene.node("aggregator")):
                pass  # a second server: its warrant is enough
            bob = error_of(scene.work(nodes["bob"], task(), sources()["bob"]))
            for error in await asyncio.gather(*ends, bob):
                assert isinstance(error, RefusedByPeer)
                assert error.code == "warrant-superseded"

    run(story())
    known = scene.custodians.mark("aggregator")
    assert known is not None
    assert (known.round, known.server_epoch) == (0, 1)
    [line] = scene.events("aggregator", "failed")
    assert line["code"] == "warrant-superseded"
    assert not scene.model_path.exists()


def test_custodians_that_are_away_stop_no_training_and_are_waited_for_at_its_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, finished: Scene, scene: Scene
) -> None:
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0)  # a mark with every model
    monkeypatch.setattr(deposits, "RETRY_SECONDS", 0.01)

    def waits(party: str) -> bool:
        log = scene.directory / "logs" / f"{party}.jsonl"
        return log.exists() and "last-mark-waits" in log.read_text()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        nodes = scene.nodes()
        offices: dict[str, Office] = {}
        lines: dict[str, CustodianLine] = {}

        async def all_away() -> None:
            for office in offices.values():
                await office.shut()

        def shut() -> None:
            asyncio.run_coroutine_threadsafe(all_away(), loop).result()

        async with AsyncExitStack() as stack:
            for party, node in nodes.items():
                offices[party] = await stack.enter_async_context(
                    scene.custodians.office(party)
                )
                lines[party] = await stack.enter_async_context(
                    offices[party].line(node)
                )
            tasks = {"alice": Hooked({3: shut}), "bob": task()}
            serving = asyncio.ensure_future(
                scene.serve(nodes["aggregator"], task(), custodian=lines["aggregator"])
            )
            working = [
                asyncio.ensure_future(
                    scene.work(
                        nodes[name], tasks[name], sources()[name], custodian=lines[name]
                    )
                )
                for name in WORKERS
            ]
            await until(lambda: all(map(waits, WORKERS)))
            # All rounds are trained; nobody has reported on the final model.
            assert not any(done.done() for done in working)
            for party in WORKERS:
                known = offices[party].register.mark(scene.custodians.plan.run_id)
                assert known is not None
                assert known.round < 12
                await offices[party].open()
            await until(lambda: waits("aggregator"))
            # All have reported; nobody may go before the model is sealed.
            assert not any(done.done() for done in working)
            assert not scene.model_path.exists()
            await offices["aggregator"].open()
            await asyncio.gather(serving, *working)

    run(story())
    assert_same_bits(finished, scene)
    for party in PARTIES:
        known = scene.custodians.mark(party)
        assert known is not None
        assert known.round == 12
        assert len(scene.events(party, "deposit-failed")) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks are looked at, and failures retried, without delay."""
    for name in ("LOOK_SECONDS", "FIRST_RETRY_SECONDS", "LAST_RETRY_SECONDS"):
        for module in (warranting, membership):
            monkeypatch.setattr(module, name, 0.01)


@pytest.fixture
def waiting(federation: Federation, tmp_path: Path, clock: HandClock) -> Scene:
    """A scene in which warrants last for four minutes of a clock set by hand."""
    return make_scene(tmp_path / "run", federation, clock=clock, warrant_life=4 * HOUR)


@pytest.mark.usefixtures("quick")
def test_a_server_renews_its_warrant_at_half_of_its_life(
    run: Run, waiting: Scene, clock: HandClock
) -> None:
    async def story() -> None:
        node = waiting.node("aggregator")
        serving = asyncio.ensure_future(waiting.serve(node, task()))
        log = waiting.directory / "logs" / "aggregator.jsonl"
        await until(lambda: log.exists() and "listening" in log.read_text())
        first = node.warrant.current.terms
        assert seconds_to_renewal(node) == 7200
        clock.forward(2 * HOUR)
        await until(lambda: node.warrant.current.terms != first)
        renewed = node.warrant.current.terms
        assert renewed.epoch == first.epoch
        assert renewed.issued_at == first.issued_at + 7200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(story())
    assert waiting.events("aggregator", "warrant-renewal-failed") == []
    *_, renewed, failed = entries_of(waiting.directory)
    assert isinstance(renewed, WarrantRenewed)
    assert renewed.warrant.terms.issued_at == int(clock().timestamp())
    assert isinstance(failed, RunFailed)
    assert failed.code == "server-stopped"


@pytest.mark.usefixtures("quick")
def test_a_warrant_that_a_server_got_by_the_way_is_on_record(
    run: Run, waiting: Scene, clock: HandClock
) -> None:
    """A deposit meets the custodian anew when its line broke, and gets a warrant."""

    def recorded() -> bool:
        return any(
            isinstance(it, WarrantRenewed) for it in entries_of(waiting.directory)
        )

    async def story() -> None:
        node = waiting.node("aggregator")
        async with (
            waiting.custodians.office("aggregator") as office,
            office.line(node) as line,
        ):
            serving = asyncio.ensure_future(waiting.serve(node, task(), custodian=line))
            log = waiting.directory / "logs" / "aggregator.jsonl"
            await until(lambda: log.exists() and "listening" in log.read_text())
            mark, first = line.mark, node.warrant.current
            assert mark is not None
            clock.forward(timedelta(minutes=5))
            await line.close()
            await line.deposit(mark)
            assert node.warrant.current != first
            await until(recorded)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving

    run(story())


@pytest.mark.usefixtures("quick")
def test_a_server_goes_on_while_its_custodian_is_away_and_renews_when_it_is_back(
    run: Run, waiting: Scene, clock: HandClock
) -> None:
    async def story() -> None:
        node = waiting.node("aggregator")
        office = waiting.custodians.office("aggregator")
        async with office as open_office, open_office.line(node) as line:
            serving = asyncio.ensure_future(waiting.serve(node, task(), custodian=line))
            log = waiting.directory / "logs" / "aggregator.jsonl"
            await until(lambda: log.exists() and "listening" in log.read_text())
            first = node.warrant.current.terms
            await open_office.shut()
            clock.forward(2 * HOUR)
            await until(lambda: "warrant-renewal-failed" in log.read_text())
            await open_office.open()
            await until(lambda: node.warrant.current.terms != first)
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
        [told] = waiting.events("aggregator", "warrant-renewal-failed")
        assert told["seconds_left"] == 7200

    run(story())


@pytest.mark.usefixtures("quick")
def test_a_server_whose_party_took_its_consent_back_stops_and_tells_its_workers(
    run: Run, waiting: Scene, clock: HandClock
) -> None:
    async def story() -> None:
        nodes = waiting.nodes()
        async with (
            waiting.custodians.office("aggregator") as office,
            office.line(nodes["aggregator"]) as line,
        ):
            server = asyncio.ensure_future(
                error_of(waiting.serve(nodes["aggregator"], task(), custodian=line))
            )
            alice = asyncio.ensure_future(
                error_of(waiting.work(nodes["alice"], task(), sources()["alice"]))
            )
            log = waiting.directory / "logs" / "aggregator.jsonl"
            await until(lambda: log.exists() and "peer-admitted" in log.read_text())
            digest = plan_hash(waiting.custodians.plan)
            office.register.withdraw(digest, at=clock())
            clock.forward(2 * HOUR)
            for error in await asyncio.gather(server, alice):
                assert isinstance(error, RefusedByPeer)
                assert error.code == "plan-withdrawn"

    run(story())


@pytest.mark.usefixtures("quick")
def test_a_server_whose_warrant_has_ended_stops_and_tells_its_workers(
    run: Run, waiting: Scene, clock: HandClock
) -> None:
    async def story() -> None:
        nodes = waiting.nodes()
        async with (
            waiting.custodians.office("aggregator") as office,
            office.line(nodes["aggregator"]) as line,
        ):
            server = asyncio.ensure_future(
                error_of(waiting.serve(nodes["aggregator"], task(), custodian=line))
            )
            alice = asyncio.ensure_future(
                error_of(waiting.work(nodes["alice"], task(), sources()["alice"]))
            )
            log = waiting.directory / "logs" / "aggregator.jsonl"
            await until(lambda: log.exists() and "worker-joined" in log.read_text())
            await office.shut()
            # Alice's own warrant is as old, and her custodian is there.
            clock.forward(2 * HOUR)
            await until(lambda: "warrant-renewal-failed" in log.read_text())
            clock.forward(2 * HOUR)
            for error in await asyncio.gather(server, alice):
                assert error.code == "warrant-expired"
            assert isinstance(await server, ProtocolError)

    run(story())
    [line] = waiting.events("aggregator", "failed")
    assert line["code"] == "warrant-expired"
    assert not waiting.model_path.exists()
