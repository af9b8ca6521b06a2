"""With a number as quorum the server's own party knows of each state first."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.rounds_story import HOUR, PARTIES, Story, quorum_course
from tests.support.running import Run, until
from typing_extensions import override

from cloister.errors import VerificationError
from cloister.federation.state import Witness
from cloister.storage.mirror.subject import Kept


class Unreached(Witness):
    """A party that nobody gets through to."""

    def __init__(self) -> None:
        self.asked: list[Kept] = []

    @override
    async def told(self, kept: Kept) -> None:
        self.asked.append(kept)
        await asyncio.Event().wait()


def test_a_run_that_fails_while_its_party_is_told_ends_and_shows_nobody_the_model(
    run: Run,
) -> None:
    """What brings the news has ended by then, and whoever fails the run waits."""

    async def go() -> None:
        witness = Unreached()
        plan = quorum_course(PARTIES)
        async with Story(plan, witness=witness) as story:
            await story.join_all()
            story.told.clear()
            for party in PARTIES:
                await story.count(party, 1)
            await until(lambda: bool(witness.asked))
            assert witness.asked == [story.keeper.newest]
            waits = asyncio.ensure_future(story.next_model("bob", after=1))
            await asyncio.sleep(0)
            error = VerificationError("another server", code="server-epoch-old")
            await story.coordinator.fail(error)
            with pytest.raises(VerificationError):
                await waits
            assert story.told == []
            assert story.log.named("round") == []
            # It is durable and recorded: the next server goes on from there.
            assert (await story.coordinator.rest()).round == 1
            assert [it.round for it in story.audit.rounds] == [1]

    run(go())


def test_a_party_that_will_not_hear_of_a_state_fails_the_run(run: Run) -> None:
    class Refusing(Witness):
        @override
        async def told(self, kept: Kept) -> None:
            raise VerificationError("known otherwise", code="mark-forked")

    async def go() -> None:
        async with Story(quorum_course(PARTIES), witness=Refusing()) as story:
            await story.join_all()
            story.told.clear()
            for party in PARTIES:
                await story.count(party, 1)
            with pytest.raises(VerificationError):
                await story.coordinator.run(patience_seconds=HOUR)
            assert story.told == []

    run(go())
