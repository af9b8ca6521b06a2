from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from tests.support.kept_in_memory import KeptInMemory, KnownAtOnce, digest_of
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
from cloister.federation.model_state import ModelState
from cloister.federation.published import Published
from cloister.federation.publisher import ARITHMETIC_THREADS, Publisher
from cloister.federation.staging import SharedStaging, transfer_seconds
from cloister.federation.tally import Tally
from cloister.federation.wire_format import wire_format
from cloister.storage.mirror.subject import Kept


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
        completed: int = 0,
    ) -> None:
        self.plan = plan
        self.model = ModelBuffer(LAYOUT)
        self.audit = audit or RecordedRounds()
        self.log = RecordedLog()
        self.state = ModelState(self.model, plan.optimizer)
        self.keeper = KeptInMemory(self.state, completed=completed)
        self.witness = KnownAtOnce()
        self.publisher = Publisher(
            plan,
            self.state,
            keeper=self.keeper,
            audit=self.audit,
            threads=threads,
            log=self.log.logger(),
            elapsed=lambda: 0.0,
        )
        self.published: list[Published] = []

    async def first(self) -> Published:
        self.published.append(self.publisher.first())
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
            told=self.witness.told,
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
            rounds.keeper.newest.digest,
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
                told=rounds.witness.told,
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
        assert out.state == digest_of(rounds.state, 1)

    run(story())


def test_a_model_that_may_be_some_partys_first_carries_the_state(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = Rounds(course(), threads)
        await rounds.first()
        assert (await rounds.next()).header.state is None
        out = (await rounds.next(stated=True)).header
        assert out.state == digest_of(rounds.state, 2)

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


class Ordered(RecordedRounds):
    """Notes rounds among what a keeper did."""

    keeper: KeptInMemory

    @override
    def round_completed(
        self,
        number: int,
        *,
        head: bytes,
        participants: tuple[Participant, ...],
        state: bytes | None,
    ) -> None:
        self.keeper.done.append(("record", number))
        super().round_completed(
            number, head=head, participants=participants, state=state
        )


def ordered(plan: Course, threads: ThreadPoolExecutor) -> Rounds:
    """Returns rounds of which the keeper's `done` says all that happened, in order."""
    audit = Ordered()
    rounds = Rounds(plan, threads, audit=audit)
    audit.keeper = rounds.keeper

    class Party(KnownAtOnce):
        @override
        async def told(self, kept: Kept) -> None:
            rounds.keeper.done.append(("told", kept.round))
            await super().told(kept)

    rounds.witness = Party()

    class Noting(list[Published]):
        @override
        def append(self, published: Published, /) -> None:
            rounds.keeper.done.append(("publish", published.header.round))
            super().append(published)

    rounds.published = Noting()
    return rounds


def test_a_state_that_is_stated_is_durable_before_its_model_goes_out(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = ordered(course(), threads)
        await rounds.first()
        out = await rounds.next(stated=True)
        assert rounds.keeper.done[1:] == [
            ("seal", 1),
            ("record", 1),
            ("commit", 1),
            ("publish", 2),
        ]
        assert out.header.state == rounds.keeper.newest.digest
        assert rounds.audit.rounds[0].state == rounds.keeper.newest.digest.hex()

    run(story())


def test_where_all_contribute_the_state_is_kept_beside_the_next_round(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = ordered(replace(course(rounds=5), mirror_every=2), threads)
        await rounds.first()
        for _ in range(3):
            await rounds.next()
        assert [it for it in rounds.keeper.done if it[0] != "publish"] == [
            ("record", 1),
            ("record", 2),
            ("seal", 2),
            ("commit", 2),
            ("record", 3),
        ]
        assert rounds.keeper.done.index(("publish", 3)) == (
            rounds.keeper.done.index(("record", 2)) + 1
        )
        # It was over before the next step touched the state.
        assert rounds.keeper.newest.round == 2
        assert (await rounds.publisher.rest()).round == 3

    run(story())


def test_with_a_number_as_quorum_the_party_knows_each_state_before_its_model_goes_out(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story() -> None:
        rounds = ordered(quorum_course(PARTIES), threads)
        await rounds.first()
        out = await rounds.next()
        assert rounds.keeper.done[1:] == [
            ("choose", 1),
            ("seal", 1),
            ("record", 1),
            ("commit", 1),
            ("told", 1),
            ("publish", 2),
        ]
        assert rounds.keeper.choices[1] == PARTIES
        assert rounds.witness.states == [rounds.keeper.newest]
        assert rounds.audit.rounds[0].state == rounds.keeper.newest.digest.hex()
        # Workers' custodians are not asked each round.
        assert out.header.state is None

    run(story())


def test_a_state_is_sealed_with_the_head_that_went_out_with_its_rounds_model(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    async def story(plan: Course) -> None:
        rounds = Rounds(plan, threads)
        first = await rounds.first()
        second = await rounds.next()
        await rounds.next(stated=True)
        assert rounds.keeper.sealed_heads == {
            1: first.header.audit_head,
            2: second.header.audit_head,
        }
        assert [it.head for it in rounds.audit.rounds] == [
            head.hex() for head in rounds.keeper.sealed_heads.values()
        ]

    run(story(course()))
    run(story(quorum_course(PARTIES)))


def test_a_head_that_goes_out_with_a_state_is_on_the_disk(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    """It goes into marks; of other models the head is the newest there is."""

    class Behind(RecordedRounds):
        @property
        @override
        def durable_head(self) -> bytes:
            return b"\1" * 32

    async def story() -> None:
        rounds = Rounds(course(), threads, audit=Behind())
        stated = (await rounds.first(), await rounds.next(stated=True))
        assert [it.header.audit_head for it in stated] == [b"\1" * 32] * 2
        assert (await rounds.next()).header.audit_head == rounds.audit.head

    run(story())


def test_no_loss_is_said_of_a_round_that_others_may_do_again(
    run: Run, threads: ThreadPoolExecutor
) -> None:
    """Two means over different parties would show one party's part in them."""

    class Full(KeptInMemory):
        @override
        def commit(self) -> None:
            raise StorageError("no room", code="mirror-unwritable")

    class Silent(KnownAtOnce):
        @override
        async def told(self, kept: Kept) -> None:
            raise ProtocolError("silent", code="custodian-silent")

    async def story(*, full: bool) -> None:
        rounds = Rounds(quorum_course(PARTIES), threads)
        if full:
            rounds.publisher._saves._keeper = Full(rounds.state)
        else:
            rounds.witness = Silent()
        await rounds.first()
        with pytest.raises(StorageError if full else ProtocolError):
            await rounds.next()
        assert rounds.log.named("round") == []
        assert len(rounds.published) == 1

    run(story(full=True))
    run(story(full=False))


def test_a_server_that_goes_on_publishes_the_model_after_its_state(
    threads: ThreadPoolExecutor,
) -> None:
    for completed, final in ((2, False), (3, True)):
        rounds = Rounds(course(rounds=3), threads, completed=completed)
        header = rounds.publisher.first().header
        assert (header.round, header.final) == (completed + 1, final)
        assert header.state == rounds.keeper.newest.digest
