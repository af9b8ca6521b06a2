"""How rounds end: deadlines, divergence, failures, and in which order they meet."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.rounds_story import (
    HOUR,
    LAYOUT,
    PARTIES,
    WIDE,
    Story,
    bytes_of,
    course,
    filled,
    header,
    quorum_course,
    replace_layout,
    report,
    turns,
    update_of,
)
from tests.support.run_audit import participant
from tests.support.running import Run, until

from cloister.errors import (
    ConfigError,
    PlatformError,
    ProtocolError,
)
from cloister.federation.layout import ModelBuffer
from cloister.federation.published import Published
from cloister.federation.publisher import ARITHMETIC_THREADS

THREE = ("alice", "bob", "carol")


async def whole_model(story: Story, party: str, *, after: int) -> bytes:
    return await bytes_of(await story.next_model(party, after=after))


async def join(story: Story, *parties: str) -> dict[str, asyncio.Task[Published]]:
    """Has parties ask for a model; returns their calls, which may wait."""
    calls = {party: story.call(party) for party in parties}
    await asyncio.sleep(0)
    return calls


async def round_without(story: Story, *absent: str) -> None:
    """Begins a run of a number quorum with some parties absent."""
    present = [party for party in story.course.parties if party not in absent]
    calls = await join(story, *present)
    story.coordinator._expire(0)
    await asyncio.gather(*calls.values())


def test_a_number_quorum_begins_at_its_deadline_without_who_is_absent(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(quorum_course(THREE, deadline_seconds=0.01)) as story:
            calls = await join(story, "alice", "carol")
            models = await asyncio.gather(*calls.values())
            assert [model.header.round for model in models] == [1, 1]
            assert story.missing == THREE  # bob's seat is open

    run(go())


def test_a_round_closes_at_its_deadline_with_its_quorum_and_goes_on_to_the_end(
    run: Run,
) -> None:
    async def go() -> None:
        plan = quorum_course(THREE, deadline_seconds=0.01, rounds=2)
        async with Story(plan) as story:
            await asyncio.gather(*(await join(story, "alice", "carol")).values())
            for number in (1, 2):
                calls = [story.contribute(it, number, 2.0) for it in ("carol", "alice")]
                models = await asyncio.gather(*calls)
                assert [it.header.round for it in models] == [number + 1, number + 1]
            ending = asyncio.ensure_future(story.coordinator.run(patience_seconds=HOUR))
            for party in ("carol", "alice"):
                story.coordinator.finish(participant(party), report(2, accuracy=1))
            assert await ending == {"accuracy": 0.5}
            np.testing.assert_array_equal(story.coordinator.model.parameters, -4)
            who = [[it.party for it in one.participants] for one in story.audit.rounds]
            assert who == [["alice", "carol"], ["alice", "carol"]]
            assert story.coordinator.ending.reports == (
                participant("alice"),
                participant("carol"),
            )

    run(go())


def test_who_still_sends_or_waits_as_a_round_closes_is_told_that_it_is_late(
    run: Run,
) -> None:
    five = (*THREE, "dave", "erin")

    async def go() -> None:
        async with Story(quorum_course(five)) as story:
            await asyncio.gather(*(await join(story, *five)).values())
            for party in ("erin", "bob"):
                await story.count(party, 1)
            coordinator = story.coordinator
            intake = coordinator.intake("alice", header(1))

            async def send(party: str) -> None:
                async with intake.staging.place(party):
                    await asyncio.Event().wait()

            sending = [
                asyncio.ensure_future(send(it)) for it in ("alice", "carol", "dave")
            ]
            await turns(lambda: len(intake.staging._places) == 3)
            coordinator._expire(1)
            for call in sending:
                with pytest.raises(ProtocolError) as caught:
                    await call
                assert caught.value.code == "update-late"
            with pytest.raises(ProtocolError) as caught:
                await story.count("alice", 1)
            assert caught.value.code == "update-late"
            assert (await story.call("alice")).header.round == 2

    run(go())


def test_a_deadline_short_of_the_quorum_gives_the_seats_of_the_dead_anew(
    run: Run,
) -> None:
    async def go() -> None:
        plan = replace(quorum_course(THREE), seats=2)
        async with Story(plan) as story:
            calls = await join(story, *THREE)
            machine = story.coordinator._machine
            await until(lambda: len(story.told) == 1)
            alive, dead = machine.seated
            [other] = set(THREE) - {alive, dead}
            await story.count(alive, 1)
            story.coordinator._expire(1)
            assert (await calls.pop(other)).header.round == 1
            await story.count(other, 1)
            assert (await story.next_model(alive, after=1)).header.round == 2
            await asyncio.gather(*calls.values())

    run(go())


def test_a_deadline_that_fires_while_its_round_closes_is_nothing_to_the_next(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(quorum_course(THREE)) as story:
            await asyncio.gather(*(await join(story, *THREE)).values())
            calls = [asyncio.ensure_future(story.contribute(it, 1)) for it in THREE]
            coordinator = story.coordinator
            await until(lambda: coordinator._moving is not None)
            coordinator._expire(1)  # decided, not begun
            await turns(lambda: coordinator._machine.round == 2)
            coordinator._expire(1)  # begun, not over
            await story.closed()
            assert coordinator._machine.round == 2
            await story.count("bob", 2)
            await story.count("alice", 2)
            assert not coordinator._machine.may_close
            coordinator._expire(2)
            await story.closed()
            assert coordinator._machine.round == 3
            await asyncio.gather(*calls)

    run(go())


def test_who_leaves_between_a_deadline_and_the_beginning_it_led_to_ends_nothing(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(quorum_course(THREE)) as story:
            calls = await join(story, "alice", "bob")
            # Its task is cancelled first, and runs before what the deadline begins.
            calls["bob"].cancel()
            story.coordinator._expire(0)
            await asyncio.wait((calls["bob"],))
            await story.closed()
            assert story.coordinator.failure is None
            assert story.coordinator._machine.round == 0
            again = story.call("bob")
            assert (await again).header.round == 1
            assert await calls["alice"] is await again

    run(go())


def test_nobody_contributes_to_a_round_whose_model_is_not_out(run: Run) -> None:
    """Or a signature over the head before it could be counted for that round."""

    async def go() -> None:
        async with Story() as story:
            calls = await join(story, *PARTIES)
            await asyncio.gather(*calls.values())
            story.now += HOUR  # a mark is due, so the model is kept before it goes out
            for party in PARTIES:
                await story.count(party, 1)
            await turns(lambda: story.coordinator._machine.round == 2)
            assert len(story.told) == 1
            with pytest.raises(ProtocolError) as caught:
                story.coordinator.check_header("alice", header(2))
            assert caught.value.code == "update-round"
            await story.closed()
            await story.count("alice", 2)

    run(go())


def test_a_run_that_fails_during_a_step_gives_nobody_the_model(run: Run) -> None:
    async def go() -> None:
        async with Story(layout=WIDE) as story:
            first = await story.join_all()
            workers = [asyncio.ensure_future(story.contribute(it, 1)) for it in PARTIES]
            await turns(lambda: story.coordinator._moving is not None)
            await story.coordinator.fail(PlatformError("no power", code="power"))
            assert story.coordinator._moving is None
            for worker in workers:
                with pytest.raises(PlatformError):
                    await worker
            with pytest.raises(PlatformError):
                first.message(0)
            assert story.told == [first.header]

    run(go())


def test_a_run_that_fails_while_updates_are_added_leaves_nothing_at_work(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(course(parties=THREE), layout=WIDE) as story:
            await story.join_all()
            await story.count("alice", 1)
            intake = story.coordinator._intake
            assert intake is not None
            adding = intake._adding
            assert adding is not None
            await story.coordinator.fail(PlatformError("no power", code="power"))
            assert adding.done()

    run(go())


def test_a_model_that_diverges_goes_out_to_nobody_and_everybody_hears_why(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(course(rate=1e6), layout=WIDE) as story:
            await story.join_all()
            workers = [
                asyncio.ensure_future(whole_model(story, party, after=1))
                for party in PARTIES
            ]
            wild = ModelBuffer(WIDE)
            wild.parameters[-1] = np.finfo(np.float32).max  # of the last span
            for party in PARTIES:
                await story.count(party, 1, wild)
            for worker in workers:
                with pytest.raises(ConfigError) as caught:
                    await worker
                assert caught.value.code == "training-diverged"
                assert caught.value is story.coordinator.failure
            assert [header.round for header in story.told] == [1]
            assert story.log.named("round") == []
            assert story.audit.rounds == []

    run(go())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::3])
@pytest.mark.parametrize("quorum", [None, 2])
def test_the_result_is_the_same_to_the_bit_whoever_comes_first(
    run: Run, order: tuple[int, ...], quorum: int | None
) -> None:
    parties = (*THREE, "dave")
    generator = np.random.default_rng(5)
    models = {party: ModelBuffer(LAYOUT) for party in parties}
    for model in models.values():
        model.parameters[:] = generator.normal(size=3) * 10.0 ** generator.integers(
            -3, 3, size=3
        )
        model.statistics[:] = generator.normal(size=1)

    async def trained(names: list[str]) -> bytes:
        plan = course(parties=parties, rounds=2)
        if quorum is not None:
            plan = quorum_course(parties, quorum=quorum, rounds=2)
        async with Story(plan) as story:
            last = await story.join_all()
            for number in (1, 2):
                calls = []
                for name in names:
                    call = story.contribute(name, number, models[name])
                    calls.append(asyncio.ensure_future(call))
                    await asyncio.sleep(0)
                last, *_ = await asyncio.gather(*calls)
            return await bytes_of(last)

    async def go() -> None:
        in_order = await trained(list(parties))
        assert await trained([parties[n] for n in order]) == in_order

    run(go())


def test_a_round_of_one_contributor_says_no_loss_and_no_metric(run: Run) -> None:
    async def go() -> None:
        plan = replace(course(parties=("alice",), rounds=2), evaluate_every=1)
        async with Story(plan) as story:
            await story.join_all()
            await story.count("alice", 1)
            await story.closed()
            await story.count("alice", 2, evaluation=report(10, canary=1234.5))
            await story.closed()
            assert [line["loss"] for line in story.log.named("round")] == [None, None]
            assert story.log.named("evaluation") == []
            story.coordinator.finish(participant("alice"), report(10, canary=1234.5))
            assert await story.coordinator.run(patience_seconds=HOUR) == {}
            assert "1234" not in story.log.text()

    run(go())


def test_reports_of_a_quorum_end_a_run_and_one_alone_is_withheld(run: Run) -> None:
    async def go() -> None:
        plan = quorum_course(THREE, rounds=1)
        async with Story(plan) as story:
            await round_without(story, "bob")
            for party in ("alice", "carol"):
                await story.count(party, 1)
            story.coordinator._expire(1)
            await story.closed()
            story.coordinator.finish(participant("alice"), report(2, accuracy=1))
            story.coordinator._expire(2)
            await story.closed()
            assert story.coordinator.metrics is None
            # Who never contributed may report: the model is everybody's.
            assert (await story.call("bob")).header.final
            story.coordinator.finish(participant("bob"), report(2, accuracy=0))
            assert await story.coordinator.run(patience_seconds=HOUR) == {
                "accuracy": 0.25
            }

    run(go())


async def counted(
    story: Story, party: str, value: float = 1.0
) -> weakref.ref[NDArray[np.float64]]:
    """Brings an update; returns a reference to a part of it."""
    said = replace_layout(header(1), WIDE)
    with story.coordinator.waiting(party):
        intake = story.coordinator.intake(party, said)
        async with intake.staging.place(party) as place:
            update = update_of(filled(value, WIDE), limits=intake.limits)
            story.coordinator.count(
                participant(party), said, update=update, place=place
            )
            return weakref.ref(update.statistics)


def test_an_update_leaves_no_byte_behind_when_its_round_is_over(run: Run) -> None:
    async def go() -> None:
        async with Story(course(parties=THREE), layout=WIDE) as story:
            await story.join_all()
            refs = [await counted(story, party) for party in THREE]
            await story.next_model("alice", after=1)
            await story.closed()
            # A thread lets go of its work just after it has said that it is done.
            await until(lambda: all(ref() is None for ref in refs))

    run(go())


def test_every_model_says_its_state_until_all_who_may_get_it_have_contributed(
    run: Run,
) -> None:
    """A party's memory of the run begins with its first model, whenever that comes."""

    async def go() -> None:
        async with Story(quorum_course(THREE, rounds=4)) as story:
            await round_without(story, "bob")
            for number, parties in enumerate(
                (("alice", "carol"), ("alice", "bob"), THREE), 1
            ):
                calls = [
                    asyncio.ensure_future(story.contribute(it, number))
                    for it in parties
                ]
                machine = story.coordinator._machine
                await until(lambda: len(machine.counted) == len(parties))  # noqa: B023
                story.coordinator._expire(number)
                await asyncio.gather(*calls)
                await asyncio.gather(*map(story.call, THREE))  # seats for the next
            stated = [header.state is not None for header in story.told]
            assert stated == [True, True, False, False]

    run(go())


FOUR = (*THREE, "dave")


async def forgotten(*refs: weakref.ref[NDArray[np.float64]]) -> None:
    """Waits until nothing reaches these; a thread lets go just after it is done."""
    while any(ref() is not None for ref in refs):
        gc.collect()
        await asyncio.sleep(0)


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def no_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("quorum", [None, 3])
@pytest.mark.parametrize("broken", [no_thread, no_memory])
def test_an_update_that_cannot_be_added_ends_the_run_at_once(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    quorum: int | None,
    broken: Callable[..., None],
) -> None:
    """The round cannot end any more, so nobody is to wait for its other updates."""

    async def go() -> None:
        plan = course(parties=FOUR)
        if quorum is not None:
            plan = quorum_course(FOUR, quorum=quorum)
        async with Story(plan, layout=WIDE) as story:
            await story.join_all()
            ending = asyncio.ensure_future(story.coordinator.run(patience_seconds=HOUR))
            workers = [
                asyncio.ensure_future(story.next_model(it, after=1)) for it in FOUR[1:]
            ]
            if broken is no_memory:
                total = story.coordinator._publisher._total
                monkeypatch.setattr(total, "add", broken)
            else:
                monkeypatch.setattr(story.threads, "submit", broken)
            ref = await counted(story, "alice")
            for waiter in (*workers, ending):
                with pytest.raises(PlatformError) as caught:
                    await waiter
                assert caught.value.code == "unforeseen-error"
                assert caught.value is story.coordinator.failure
            await forgotten(ref)

    run(go())


@contextmanager
def busy_threads(story: Story) -> Iterator[None]:
    """Nothing is added and no step is made meanwhile."""
    over = threading.Event()
    for _ in range(ARITHMETIC_THREADS):
        story.threads.submit(over.wait)
    try:
        yield
    finally:
        over.set()


async def still_waits(ending: asyncio.Task[dict[str, float]]) -> bool:
    """Returns whether a run that may give up does not."""
    for _ in range(50):
        await asyncio.sleep(0)
    return not ending.done()


def test_who_waits_for_a_long_step_is_not_missing_and_a_model_is_a_sign_of_life(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            coordinator, attendance = story.coordinator, story.coordinator._attendance
            story.now += HOUR  # a mark is due, so the model is whole before it goes out
            with busy_threads(story):
                for party in PARTIES:
                    await story.count(party, 1)
                await turns(lambda: coordinator._machine.round == 2)
                attendance._touched -= 2 * HOUR
                ending = asyncio.ensure_future(coordinator.run(patience_seconds=HOUR))
                assert await still_waits(ending)
                ending.cancel()
                # From here on nobody says anything but the publication itself.
                attendance._touched -= 2 * HOUR
                assert len(story.told) == 1
            await story.closed()
            assert len(story.told) == 2
            ending = asyncio.ensure_future(coordinator.run(patience_seconds=HOUR))
            assert await still_waits(ending)
            attendance._touched -= 2 * HOUR
            ending.cancel()
            with pytest.raises(ProtocolError, match="gave up waiting in round 2"):
                await coordinator.run(patience_seconds=HOUR)

    run(go())


def test_patience_is_longer_where_a_round_may_wait_for_its_deadline(run: Run) -> None:
    async def go() -> None:
        async with Story(quorum_course(THREE, deadline_seconds=HOUR)) as story:
            await asyncio.gather(*(await join(story, *THREE)).values())
            coordinator = story.coordinator
            coordinator._attendance._touched -= 1.5 * HOUR
            ending = asyncio.ensure_future(coordinator.run(patience_seconds=HOUR))
            assert await still_waits(ending)
            ending.cancel()
            coordinator._attendance._touched -= HOUR
            with pytest.raises(ProtocolError, match="gave up waiting in round 1"):
                await coordinator.run(patience_seconds=HOUR)

    run(go())


@pytest.mark.parametrize("mark_due", [True, False])
@pytest.mark.parametrize("diverges", [True, False])
def test_the_error_that_ends_a_run_during_a_step_holds_no_update(
    run: Run, *, mark_due: bool, diverges: bool
) -> None:
    """It stays as long as the process, and so would what its frames hold."""
    value = float(np.finfo(np.float32).max) if diverges else 1.0

    async def go() -> None:
        plan = course(parties=THREE, rate=1e6 if diverges else 1.0)
        async with Story(plan, layout=WIDE) as story:
            await story.join_all()
            if mark_due:
                story.now += HOUR
            error = PlatformError("no power", code="power")
            refs = [await counted(story, "alice", value)]
            await until(lambda: story.coordinator._publisher._total.count == 1)
            with busy_threads(story):
                refs += [await counted(story, party, value) for party in THREE[1:]]
                await turns(lambda: story.coordinator._machine.round == 2)
                failing = asyncio.ensure_future(story.coordinator.fail(error))
                await turns(lambda: story.coordinator.failure is error)
            await failing
            assert error.__traceback__ is None
            await forgotten(*refs)
            assert error.__context__ is None

    run(go())
