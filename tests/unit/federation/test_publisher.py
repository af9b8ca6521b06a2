from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from tests.support.recorded_log import RecordedLog
from tests.support.rounds_story import (
    LAYOUT,
    PARTIES,
    bytes_of,
    course,
    filled,
    header,
    quorum_course,
    update_of,
)
from tests.support.run_audit import RecordedRounds, participant
from tests.support.running import Run
from typing_extensions import override

from cloister.errors import ProtocolError, StorageError
from cloister.federation.audit_records import Participant
from cloister.federation.course import Course
from cloister.federation.intake import Intake, OrderedIntake, SharedIntake
from cloister.federation.layout import ModelBuffer
from cloister.federation.published import Published
from cloister.federation.publisher import ARITHMETIC_THREADS, Publisher
from cloister.federation.staging import SharedStaging, transfer_seconds
from cloister.federation.tally import Tally
from cloister.federation.wire_format import wire_format


def unexpected(error: Exception) -> None:
    raise AssertionError("an update could not be added") from error


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(ARITHMETIC_THREADS) as pool:
        yield pool


class Rounds:
    """A publisher whose rounds are whole as soon as they are asked for."""

    def __init__(
        self,
        plan: Course,
        threads: ThreadPoolExecutor,
        *,
        audit: RecordedRounds | None = None,
    ) -> None:
        self.plan = plan
        self.model = ModelBuffer(LAYOUT)
        self.audit = audit or RecordedRounds()
        self.log = RecordedLog()
        self.publisher = Publisher(
            plan,
            self.model,
            audit=self.audit,
            threads=threads,
            log=self.log.logger(),
            elapsed=lambda: 0.0,
        )
        self.published: list[Published] = []

    async def first(self) -> Published:
        self.published.append(await self.publisher.first())
        return self.published[-1]

    async def next(
        self, *, value: float = 1.0, final: bool = False, stated: bool = False
    ) -> Published:
        former = self.published[-1]
        intake = self.publisher.new_intake(self.plan.parties, failed=unexpected)
        tally = Tally()
        for party in self.plan.parties:
            async with intake.staging.place(party) as place:
                update = update_of(filled(value), limits=intake.limits)
                tally.take(participant(party), header(former.header.round))
                intake.take(place, update)
        await self.publisher.next(
            former,
            self.plan.parties,
            intake=intake,
            tally=tally,
            final=final,
            stated=stated,
            publish=self.published.append,
        )
        return self.published[-1]


def intake_of(plan: Course, threads: ThreadPoolExecutor) -> Intake:
    return Rounds(plan, threads).publisher.new_intake(PARTIES, failed=unexpected)


def test_each_round_is_a_step_along_the_mean_and_the_next_model_is_what_goes_out(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(course(), threads)
        first = await rounds.first()
        assert (first.header.round, first.header.state) == (
            1,
            rounds.publisher.initial_state(),
        )
        for number in (2, 3):
            out = await rounds.next(value=2.0)
            assert (out.header.round, out.header.final) == (number, False)
            assert await bytes_of(out) == rounds.model.data.tobytes()
        np.testing.assert_array_equal(rounds.model.parameters, -4)
        assert rounds.publisher._total.count == 0

    run(story())


def test_the_former_model_is_gone_before_the_next_one_is_made(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(course(), threads)
        first = await rounds.first()
        await rounds.next()
        with pytest.raises(ProtocolError) as caught:
            first.message(0)
        assert caught.value.code == "model-superseded"

    run(story())


class FullDisk(RecordedRounds):
    @override
    def round_completed(
        self,
        number: int,
        *,
        head: bytes,
        participants: tuple[Participant, ...],
        state: bytes | None,
    ) -> None:
        raise StorageError("no room", code="audit-unwritable")


def test_a_model_whose_round_cannot_be_recorded_is_not_published(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(course(), threads, audit=FullDisk())
        await rounds.first()
        with pytest.raises(StorageError):
            await rounds.next()
        assert len(rounds.published) == 1
        assert rounds.log.named("round") == []

    run(story())


def test_a_model_that_nobody_may_have_any_more_is_made_to_its_end(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    """The threads write into it: they must be through before anything else."""

    async def story() -> None:
        rounds = Rounds(course(), threads)
        await rounds.first()
        error = ProtocolError("over", code="over")

        def refuse(_: Published) -> None:
            raise error

        intake = rounds.publisher.new_intake(PARTIES, failed=unexpected)
        tally = Tally()
        for party in PARTIES:
            async with intake.staging.place(party) as place:
                tally.take(participant(party), header(1))
                intake.take(place, update_of(filled(1.0)))
        with pytest.raises(ProtocolError) as caught:
            await rounds.publisher.next(
                rounds.published[-1],
                PARTIES,
                intake=intake,
                tally=tally,
                final=False,
                stated=False,
                publish=refuse,
            )
        assert caught.value is error
        np.testing.assert_array_equal(rounds.model.parameters, -1)

    run(story())


def test_the_final_model_says_so_carries_the_state_and_is_not_evaluated_twice(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(replace(course(rounds=1), evaluate_every=1), threads)
        await rounds.first()
        out = (await rounds.next(final=True)).header
        assert (out.final, out.evaluate) == (True, False)
        state = rounds.publisher._state
        assert out.state == state.digest(run_id="blobs/a", completed=1)

    run(story())


def test_a_model_that_may_be_some_partys_first_carries_the_state(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(course(), threads)
        await rounds.first()
        assert (await rounds.next()).header.state is None
        out = (await rounds.next(stated=True)).header
        state = rounds.publisher._state
        assert out.state == state.digest(run_id="blobs/a", completed=2)

    run(story())


def test_the_rate_of_the_log_is_the_plans_and_that_of_the_step_the_servers(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(replace(course(rate=0.25), server_peak=2.0), threads)
        await rounds.first()
        await rounds.next()
        [line] = rounds.log.named("round")
        assert line["learning_rate"] == 0.25
        np.testing.assert_array_equal(rounds.model.parameters, -2)

    run(story())


def test_the_quorum_says_how_updates_are_added(threads: ThreadPoolExecutor) -> None:
    assert isinstance(intake_of(course(), threads), OrderedIntake)
    assert isinstance(intake_of(quorum_course(PARTIES), threads), SharedIntake)


@pytest.mark.parametrize("everybody", [True, False])
def test_slow_updates_lose_their_places_only_where_the_round_can_do_without(
    threads: ThreadPoolExecutor, *, everybody: bool
) -> None:
    """The sum is exact where not all are measured, though all may have to come."""
    plan = quorum_course(PARTIES)
    if everybody:
        plan = replace(course(), by_identity=True)
    staging = intake_of(plan, threads).staging
    assert isinstance(staging, SharedStaging)
    size = wire_format(plan.wire, LAYOUT, workers=2).size_bytes
    assert staging._allowed_seconds == (
        math.inf if everybody else transfer_seconds(size)
    )
