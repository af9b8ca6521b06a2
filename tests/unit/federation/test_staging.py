from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support.rounds_story import turns
from tests.support.running import Run

from cloister.errors import CloisterError, ProtocolError
from cloister.federation import staging as module
from cloister.federation.rounds.refusals import late
from cloister.federation.staging import (
    PLACES,
    OrderedStaging,
    Place,
    SharedStaging,
    Staging,
)

FIVE = ("alice", "bob", "carol", "dave", "erin")
SIZE = 1000


class Sender:
    """A party that asks for a place and holds it until it is told what to do."""

    def __init__(self, staging: Staging, party: str) -> None:
        self.party = party
        self.place: Place | None = None
        self._staging = staging
        self._whole = asyncio.Event()
        self.task = asyncio.ensure_future(self._send())

    async def _send(self) -> None:
        async with self._staging.place(self.party) as place:
            self.place = place
            await self._whole.wait()
            place.keep()

    async def whole(self) -> Place:
        """Has its update come whole; returns its place, which is kept."""
        self._whole.set()
        await self.task
        assert self.place is not None
        return self.place

    async def gone(self) -> None:
        """Has its call break."""
        self.task.cancel()
        await asyncio.wait((self.task,))

    async def code(self) -> str:
        """Returns the code of what ended it."""
        with pytest.raises(CloisterError) as caught:
            await self.task
        return caught.value.code


class Round:
    """All senders of one round."""

    def __init__(self, staging: Staging) -> None:
        self.staging = staging
        self.senders: dict[str, Sender] = {}

    async def come(self, *parties: str) -> None:
        for party in parties:
            self.senders[party] = Sender(self.staging, party)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(8):
            await asyncio.sleep(0)

    @property
    def placed(self) -> list[str]:
        """Who has a place and may be sending, in no order."""
        held = self.senders.values()
        return sorted(
            it.party for it in held if it.place is not None and not it.task.done()
        )


@asynccontextmanager
async def round_of(staging: Staging) -> AsyncIterator[Round]:
    """A round at whose end nobody is left."""
    made = Round(staging)
    yield made
    staging.end(late(1))
    await asyncio.gather(
        *(it.task for it in made.senders.values()), return_exceptions=True
    )
    assert staging._places == set()


def ordered(*parties: str) -> OrderedStaging:
    return OrderedStaging(parties or FIVE, update_bytes=SIZE)


@pytest.mark.parametrize("order", list(itertools.permutations(FIVE))[::23])
def test_places_are_given_in_the_plans_order_and_never_more_than_two(
    run: Run, order: tuple[str, ...]
) -> None:
    async def story() -> None:
        async with round_of(ordered()) as held:
            await held.come(*order)
            for number, party in enumerate(FIVE):
                assert held.placed == list(FIVE[number : number + PLACES])
                sender = held.senders[party]
                assert sender.place is not None
                assert sender.place.turn.is_set()
                for later in FIVE[number + 1 :]:
                    place = held.senders[later].place
                    assert place is None or not place.turn.is_set()
                held.staging.free(await sender.whole())
                await held.settle()

    run(story())


def test_of_one_or_two_both_may_come_whole_at_once(run: Run) -> None:
    async def story() -> None:
        assert ordered("alice", "bob").early_bytes == SIZE
        assert ordered().early_bytes == SIZE * module.EARLY_SHARE
        assert shared().early_bytes == SIZE

    run(story())


def test_a_whole_update_before_its_turn_waits_for_the_one_before_it(run: Run) -> None:
    async def story() -> None:
        async with round_of(ordered()) as held:
            await held.come("bob", "carol")
            second = await held.senders["bob"].whole()
            await held.settle()
            assert held.placed == []  # carol waits until alice is in the sum
            await held.come("alice")
            held.staging.free(await held.senders["alice"].whole())
            assert second.turn.is_set()
            await held.settle()
            assert held.placed == ["carol"]
            held.staging.free(second)

    run(story())


@pytest.mark.parametrize("waiting", [False, True])
def test_a_party_that_breaks_off_leaves_its_place_to_its_next_node(
    run: Run, *, waiting: bool
) -> None:
    async def story() -> None:
        async with round_of(ordered()) as held:
            party = "carol" if waiting else "alice"
            await held.come(party, "bob")
            await held.senders[party].gone()
            assert held.staging._places == {held.senders["bob"].place}
            await held.come("alice", "carol")
            assert held.placed == ["alice", "bob"]
            assert (first := held.senders["alice"].place) is not None
            assert first.turn.is_set()
            for name in ("alice", "bob"):
                held.staging.free(await held.senders[name].whole())
            await held.settle()
            assert held.placed == ["carol"]

    run(story())


def shared(*, allowed_seconds: float | None = None) -> SharedStaging:
    if allowed_seconds is None:
        allowed_seconds = module.transfer_seconds(SIZE)
    return SharedStaging(update_bytes=SIZE, allowed_seconds=allowed_seconds)


@pytest.mark.parametrize("order", list(itertools.permutations(FIVE))[::23])
def test_shared_places_are_given_in_the_order_of_coming(
    run: Run, order: tuple[str, ...]
) -> None:
    async def story() -> None:
        async with round_of(shared()) as held:
            await held.come(*order)
            for number, party in enumerate(order):
                assert held.placed == sorted(order[number : number + PLACES])
                assert (place := held.senders[party].place) is not None
                assert place.turn.is_set()
                held.staging.free(await held.senders[party].whole())
                await held.settle()

    run(story())


def test_shared_places_of_who_breaks_off_go_to_the_next(run: Run) -> None:
    async def story() -> None:
        async with round_of(shared()) as held:
            await held.come(*FIVE)
            await held.senders["carol"].gone()  # while it waits
            await held.senders["alice"].gone()
            await held.settle()
            assert held.placed == ["bob", "dave"]
            # In the same turn in which it is given one.
            held.senders["bob"].task.cancel()
            held.senders["erin"].task.cancel()
            await held.settle()
            assert held.placed == ["dave"]
            await held.come("alice")
            assert held.placed == ["alice", "dave"]

    run(story())


def test_who_is_slow_keeps_its_place_as_long_as_nobody_waits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)

    async def story() -> None:
        staging = shared()
        async with round_of(staging) as held:
            await held.come("alice", "bob")
            loop = asyncio.get_running_loop()
            over = loop.time() + 2 * staging._allowed_seconds
            while loop.time() < over:
                await held.settle()
            assert held.placed == ["alice", "bob"]
            await held.come("carol")
            for slow in ("alice", "bob"):
                assert await held.senders[slow].code() == "transfer-slow"
            await turns(lambda: held.placed == ["carol"])

    run(story())


def test_where_everybody_is_needed_nobody_loses_its_place_for_slowness(
    run: Run,
) -> None:
    """A round that waits for the slow ones anyway gains nothing by ending them."""

    async def story() -> None:
        staging = shared(allowed_seconds=math.inf)
        async with round_of(staging) as held:
            await held.come("alice", "bob", "carol")
            assert staging._look is None  # nobody is looked for, however late it is
            staging._end_slow()
            await held.settle()
            assert held.placed == ["alice", "bob"]
            staging.free(await held.senders["bob"].whole())
            await held.settle()
            assert held.placed == ["alice", "carol"]

    run(story())


def test_the_queue_keeps_its_order_while_the_slow_ones_are_looked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who came first is served first, whatever number of others lost their places."""
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)

    async def story() -> None:
        staging = shared()
        async with round_of(staging) as held:
            names = tuple(f"party-{n}" for n in range(8))
            begun: list[str] = []

            async def send(name: str) -> None:
                async with staging.place(name):
                    begun.append(name)
                    await asyncio.Event().wait()

            calls = [asyncio.ensure_future(send(name)) for name in names]
            while len(begun) < len(names):
                await held.settle()
            assert begun == list(names)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    run(story())


def test_updates_that_are_whole_are_never_too_slow(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.0)

    async def story() -> None:
        staging = shared()
        async with round_of(staging) as held:
            await held.come("alice", "bob")
            places = [await held.senders[it].whole() for it in ("alice", "bob")]
            await held.come("carol")
            loop = asyncio.get_running_loop()
            over = loop.time() + 3 * staging._allowed_seconds
            while loop.time() < over:
                await held.settle()
            assert [place.lost for place in places] == [None, None]
            assert held.placed == []
            staging.free(places[0])
            await held.settle()
            assert held.placed == ["carol"]

    run(story())


@pytest.mark.parametrize("make", [ordered, shared])
def test_the_end_of_a_round_tells_who_sends_who_waits_and_who_comes(
    run: Run, make: Callable[[], Staging]
) -> None:
    async def story() -> None:
        staging = make()
        async with round_of(staging) as held:
            await held.come("alice", "bob", "carol", "dave")
            kept = await held.senders["alice"].whole()
            staging.end(late(1))
            await held.come("erin")
            for party in ("bob", "carol", "dave", "erin"):
                assert await held.senders[party].code() == "update-late"
            assert kept.lost is None
            staging.free(kept)  # its update is added first

    run(story())


def test_a_call_that_breaks_as_its_round_ends_is_cancelled_and_not_refused(
    run: Run,
) -> None:
    async def story() -> None:
        async with round_of(shared()) as held:
            await held.come("alice")
            task = held.senders["alice"].task
            held.staging.end(late(1))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(story())


def test_an_error_of_the_sender_passes_and_frees_its_place(run: Run) -> None:
    async def story() -> None:
        for staging in (ordered(), shared()):
            for error in (TimeoutError("its own"), ProtocolError("bad", code="bad")):
                with pytest.raises(type(error)) as caught:
                    async with staging.place("alice"):
                        raise error
                assert caught.value is error
            async with staging.place("alice") as place:
                assert place.turn.is_set()

    run(story())
