from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tests.support.kept_in_memory import KeptInMemory, digest_of
from tests.support.rounds_story import (
    HOUR,
    LAYOUT,
    PARTIES,
    Story,
    bytes_of,
    course,
    header,
    report,
)
from tests.support.run_audit import RecordedRounds, participant
from tests.support.running import Run
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    ConfigError,
    PlatformError,
    ProtocolError,
    StorageError,
)
from cloister.federation import attendance
from cloister.federation.audit_records import Participant
from cloister.federation.published import Published
from cloister.storage.mirror.subject import Kept


async def whole_model(story: Story, party: str, *, after: int) -> bytes:
    return await bytes_of(await story.next_model(party, after=after))


def waiting(story: Story, party: str = "alice") -> asyncio.Task[Published]:
    return asyncio.ensure_future(story.next_model(party, after=1))


def test_the_first_model_goes_out_when_all_have_come(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            first = story.call("alice")
            await asyncio.sleep(0)
            assert not first.done()
            model = await story.call("bob")
            assert await first is model
            assert (model.header.round, model.header.final) == (1, False)
            assert await bytes_of(model) == bytes(LAYOUT.size_bytes)

    run(go())


def test_a_party_of_another_layout_does_not_join(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            with pytest.raises(ProtocolError) as caught:
                await story.coordinator.join("bob", "0" * 64)
            assert caught.value.code == "layout-differs"
            assert story.missing == PARTIES

    run(go())


def test_a_party_that_comes_back_gets_the_current_model(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            second = await story.whole_round(1)
            assert await story.call("bob") is second

    run(go())


def test_a_round_steps_the_model_once_for_all(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            await story.count("bob", 1, 4.0)
            assert not story.coordinator.model.parameters.any()
            await story.count("alice", 1, 2.0)
            model = await story.next_model("alice", after=1)
            assert model.header.round == 2
            await story.closed()
            # Rate 1, mean gradient 3: from 0 to -3; the statistics are the mean.
            np.testing.assert_array_equal(story.coordinator.model.parameters, -3)
            np.testing.assert_array_equal(story.coordinator.model.statistics, 3)
            [line] = story.log.named("round")
            assert (line["round"], line["loss"], line["parties"]) == (1, 0.5, 2)

    run(go())


def test_a_published_model_is_all_of_one_round_or_ends(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            first = await story.join_all()
            before = await bytes_of(first)
            await story.whole_round(1)
            await story.closed()
            assert story.coordinator.model.data.tobytes() != before
            with pytest.raises(ProtocolError) as caught:
                first.message(0)
            assert caught.value.code == "model-superseded"

    run(go())


def test_the_log_says_once_who_has_come_and_who_is_awaited(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            await story.call("bob")
            lines = [
                (e["peer"], e["missing"]) for e in story.log.named("worker-joined")
            ]
            assert lines == [("alice", 1), ("bob", 0)]

    run(go())


def test_every_model_is_told_of_as_it_is_published(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=2)) as story:
            await story.join_all()
            await story.whole_round(1)
            last = await story.whole_round(2)
            assert [header.round for header in story.told] == [1, 2, 3]
            assert story.told[-1] is last.header

    run(go())


def test_the_first_and_the_last_model_carry_the_digest_of_the_state(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=2)) as story:
            first = await story.join_all()
            assert first.header.state == digest(story, 0)
            assert (await story.whole_round(1)).header.state is None
            last = await story.whole_round(2)
            assert last.header.state == digest(story, 2)
            assert last.header.state != first.header.state

    run(go())


def test_each_round_is_recorded_before_its_model_goes_out_with_the_head(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(course(rounds=2)) as story:
            first = await story.join_all()
            assert first.header.audit_head == RecordedRounds().head
            second = await story.whole_round(1)
            last = await story.whole_round(2)
            assert last.header.audit_head == story.audit.head
            one, two = story.audit.rounds
            assert (one.round, two.round) == (1, 2)
            assert one.head == first.header.audit_head.hex()
            assert two.head == second.header.audit_head.hex()
            assert one.participants == tuple(map(participant, PARTIES))
            assert one.state is None
            assert last.header.state is not None
            assert two.state == last.header.state.hex()

    run(go())


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


def test_a_round_that_cannot_be_recorded_ends_the_run_and_nobody_gets_its_model(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story(audit=FullDisk()) as story:
            first = await story.join_all()
            for party in PARTIES:
                await story.count(party, 1)
            with pytest.raises(StorageError) as told:
                await story.next_model("alice", after=1)
            with pytest.raises(StorageError) as ended:
                await story.coordinator.run(patience_seconds=HOUR)
            assert told.value is ended.value is story.coordinator.failure
            assert told.value.code == "audit-unwritable"
            assert story.told == [first.header]

    run(go())


def test_training_ends_with_who_reported_on_which_model(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            last = await story.whole_round(1)
            with pytest.raises(RuntimeError):
                _ = story.coordinator.ending
            for party in reversed(PARTIES):
                header = story.coordinator.check_report(party, report(1, accuracy=1))
                assert header is last.header
                story.coordinator.finish(participant(party), report(1, accuracy=1))
            await story.closed()
            ending = story.coordinator.ending
            assert ending.model is last.header
            assert ending.reports == tuple(map(participant, PARTIES))

    run(go())


def test_a_header_that_can_count_names_its_model(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            first = await story.join_all()
            assert story.coordinator.check_header("alice", header(1)) is first.header

    run(go())


def test_a_mark_is_due_every_five_seconds(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=9)) as story:
            await story.join_all()
            for number, seconds in enumerate((1.0, 3.9, 0.1, 4.9, 6.0, 0.0), 1):
                story.now += seconds
                await story.whole_round(number)
            carried = [
                header.round for header in story.told if header.state is not None
            ]
            assert carried == [1, 4, 6]

    run(go())


def digest(story: Story, completed: int) -> bytes:
    return digest_of(story.state, completed)


def test_an_update_before_the_first_model_has_no_round(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            with pytest.raises(ProtocolError) as caught:
                story.coordinator.check_header("alice", header(1))
            assert caught.value.code == "no-round"

    run(go())


def test_an_update_after_the_last_round_does_not_count(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            last = await story.whole_round(1)
            assert last.header.final
            for number, code in ((2, "update-round"), (1, "update-late")):
                with pytest.raises(ProtocolError) as caught:
                    story.coordinator.check_header("alice", header(number))
                assert caught.value.code == code

    run(go())


@pytest.mark.parametrize("number", [0, 2])
def test_a_late_and_an_early_update_leave_the_round_as_it_is(
    run: Run, number: int
) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            await story.count("alice", 1)
            with pytest.raises(ProtocolError):
                await story.count("bob", number)
            model = await story.next_model("bob", after=0)
            assert model.header.round == 1
            await story.count("bob", 1)
            assert (await story.next_model("alice", after=1)).header.round == 2

    run(go())


def test_the_model_is_evaluated_as_often_as_the_plan_says(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=5, evaluate_every=2)) as story:
            asked = [(await story.join_all()).header.evaluate]
            for number in range(1, 6):
                for party, right in zip(PARTIES, (3.0, 6.0), strict=True):
                    evaluation = report(6, accuracy=right) if asked[-1] else None
                    await story.count(party, number, evaluation=evaluation)
                model = await story.next_model("alice", after=number)
                asked.append(model.header.evaluate)
            # Models of rounds 1 to 6; the final one is evaluated at the finish.
            assert asked == [False, False, True, False, True, False]
            assert story.log.named("evaluation") == [
                {
                    "event": "evaluation",
                    "level": "info",
                    "round": number,
                    "metrics": {"accuracy": 0.75},
                }
                for number in (2, 4)
            ]

    run(go())


def test_the_last_reports_become_the_runs_metrics(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            ending = asyncio.ensure_future(story.coordinator.run(patience_seconds=HOUR))
            story.coordinator.finish(participant("bob"), report(10, accuracy=4))
            await asyncio.sleep(0)
            assert not ending.done()
            story.coordinator.finish(participant("alice"), report(30, accuracy=26))
            assert await ending == {"accuracy": 0.75}

    run(go())


def test_a_party_reports_once(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            for right in (5, 10):
                story.coordinator.finish(participant("bob"), report(10, accuracy=right))
            assert story.coordinator.metrics is None
            story.coordinator.finish(participant("alice"), report(10, accuracy=5))
            await story.closed()
            assert story.coordinator.metrics == {"accuracy": 0.5}

    run(go())


def test_who_reports_first_does_not_say_what_metrics_are_called(run: Run) -> None:
    """All reports are taken, what all have is published, and the rest is counted."""

    async def go() -> None:
        async with Story(course(rounds=2, evaluate_every=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            mine = report(10, accuracy=5, mine=10)
            await story.count("bob", 2, evaluation=mine)
            yours = report(10, accuracy=10, recall=1)
            await story.count("alice", 2, evaluation=yours)
            await story.closed()
            story.coordinator.finish(participant("bob"), report(10, mine=5))
            story.coordinator.finish(participant("alice"), report(10, accuracy=5))
            await story.closed()
            assert story.coordinator.metrics == {}
            [line] = story.log.named("evaluation")
            assert line["metrics"] == {"accuracy": 0.75}
            # Once, and without a word of any party's.
            [line] = story.log.named("metrics-differ")
            assert (line["published"], line["left_out"]) == (1, 2)
            assert "mine" not in story.log.text()
            assert "recall" not in story.log.text()

    run(go())


def test_the_state_before_the_first_round_is_known_before_anybody_comes(
    run: Run,
) -> None:
    async def go() -> None:
        async with Story() as story:
            state = story.keeper.newest.digest
            assert (await story.join_all()).header.state == state == digest(story, 0)

    run(go())


def test_after_the_last_round_a_run_waits_longer_for_the_reports(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            ending = asyncio.ensure_future(
                story.coordinator.run(patience_seconds=0.0, extra_seconds=HOUR)
            )
            for _ in range(5):
                await asyncio.sleep(0)
            assert not ending.done()
            for party in PARTIES:
                story.coordinator.finish(participant(party), report(1, accuracy=1))
            assert await ending == {"accuracy": 1.0}

        async with Story(course(rounds=1)) as impatient:
            await impatient.join_all()
            with pytest.raises(ProtocolError) as caught:
                await impatient.coordinator.run(
                    patience_seconds=0.0, extra_seconds=HOUR
                )
            assert caught.value.code == "worker-missing"

    run(go())


def test_a_report_before_the_end_is_refused(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            for stage in (None, story.join_all):
                if stage is not None:
                    await stage()
                with pytest.raises(ProtocolError) as caught:
                    story.coordinator.finish(participant("bob"), report(1, accuracy=1))
                assert caught.value.code == "finish-early"

    run(go())


async def patience_of(story: Story) -> str:
    with pytest.raises(ProtocolError) as caught:
        await story.coordinator.run(patience_seconds=0.01)
    assert caught.value.code == "worker-missing"
    assert "patience_seconds" in caught.value.remedy
    return f"{caught.value.what}: {caught.value.expected}"


def test_patience_names_who_never_came(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            joining = story.call("alice")
            await asyncio.sleep(0)
            said = await patience_of(story)
            assert said == "gave up waiting before round 1 began: bob within 0.01 s"
            joining.cancel()
            await asyncio.wait((joining,))

    run(go())


def test_patience_names_whose_update_is_missing(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            await story.whole_round(1)
            await story.count("bob", 2)
            said = await patience_of(story)
            assert said == "gave up waiting in round 2: alice within 0.01 s"

    run(go())


def test_patience_names_who_did_not_finish(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            story.coordinator.finish(participant("alice"), report(1, accuracy=1))
            said = await patience_of(story)
            assert said == "gave up waiting after the last round: bob within 0.01 s"

    run(go())


def test_patience_lasts_while_anything_arrives(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            story.coordinator._attendance._touched -= 2 * HOUR
            with pytest.raises(ProtocolError):
                await story.coordinator.run(patience_seconds=HOUR)
            story.coordinator.touch()
            ending = asyncio.ensure_future(story.coordinator.run(patience_seconds=HOUR))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not ending.done()
            ending.cancel()

    run(go())


def test_a_failure_reaches_every_waiting_worker(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            await story.count("alice", 1)
            workers = [waiting(story) for _ in range(3)]
            await asyncio.sleep(0)
            error = PlatformError("the disk is full", code="disk-full")
            await story.coordinator.fail(error)
            for worker in workers:
                with pytest.raises(PlatformError, match="disk is full"):
                    await worker
            # Whoever comes later hears it as well.
            with pytest.raises(CloisterError, match="disk is full"):
                await story.call("bob")

    run(go())


def test_a_failed_run_ends_when_every_worker_was_told(run: Run) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            waits = waiting(story)
            await asyncio.sleep(0)
            await story.coordinator.fail(
                PlatformError("the disk is full", code="disk-full")
            )
            leaving = asyncio.ensure_future(story.coordinator.farewell())
            with pytest.raises(PlatformError):
                await waits
            assert not leaving.done()  # bob computes, and comes back with his update
            with pytest.raises(PlatformError):
                story.coordinator.check_header("bob", header(1))
            await leaving
            # Nothing counts any more, whoever sends it.
            with pytest.raises(PlatformError):
                await story.count("bob", 1)
            with pytest.raises(PlatformError):
                story.coordinator.finish(participant("bob"), report(1, accuracy=1))
            assert story.missing == PARTIES

    run(go())


def test_a_failed_run_does_not_wait_for_a_worker_that_was_silent_or_is_gone(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with Story() as story:
            await story.join_all()
            await story.count("bob", 1)
            await patience_of(story)  # for alice
            waits = waiting(story, "bob")
            await asyncio.sleep(0)
            await story.coordinator.fail(
                PlatformError("the disk is full", code="disk-full")
            )
            await story.coordinator.farewell()
            assert waits.done()
            with pytest.raises(PlatformError):
                await waits

        monkeypatch.setattr(attendance, "_FAREWELL_SECONDS", 0.01)
        async with Story() as story:
            await story.join_all()
            await story.coordinator.fail(
                PlatformError("the disk is full", code="disk-full")
            )
            await story.coordinator.farewell()
            assert story.coordinator._attendance._content == set()

    run(go())


def test_a_model_that_diverges_ends_the_run_and_says_what_to_do(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rate=1e6)) as story:
            await story.join_all()
            worker = asyncio.ensure_future(whole_model(story, "alice", after=1))
            ending = asyncio.ensure_future(story.coordinator.run(patience_seconds=HOUR))
            huge = float(np.finfo(np.float32).max)
            for party in PARTIES:
                await story.count(party, 1, huge)
            for waiter in (worker, ending):
                with pytest.raises(ConfigError) as caught:
                    await waiter
                assert caught.value.code == "training-diverged"
                assert "learning rate" in caught.value.remedy
            # Nothing of it reached the model.
            assert not story.coordinator.model.parameters.any()
            assert story.log.named("round") == []

    run(go())


def test_the_log_holds_aggregates_only(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=2, evaluate_every=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            for party, secret in zip(PARTIES, (1234.5, 2345.5), strict=True):
                evaluation = report(10, canary=secret)
                await story.count(party, 2, evaluation=evaluation)
            await story.closed()
            text = story.log.text()
            assert str((1234.5 + 2345.5) / 20) in text
            for single in ("1234.5", "2345.5", "123.45", "234.55"):
                assert single not in text

    run(go())


def test_who_has_reported_goes_when_the_model_is_sealed(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            coordinator = story.coordinator
            for party in PARTIES:
                coordinator.finish(participant(party), report(1, accuracy=1))
            going = [
                asyncio.ensure_future(coordinator.until_sealed(it)) for it in PARTIES
            ]
            await coordinator.run(patience_seconds=HOUR)
            assert not any(it.done() for it in going)
            coordinator.release()
            await asyncio.gather(*going)

    run(go())


def test_who_has_reported_hears_of_a_failure(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=1)) as story:
            await story.join_all()
            await story.whole_round(1)
            story.coordinator.finish(participant("bob"), report(1, accuracy=1))
            going = asyncio.ensure_future(story.coordinator.until_sealed("bob"))
            await asyncio.sleep(0)
            error = ProtocolError("the server was stopped", code="server-stopped")
            await story.coordinator.fail(error)
            with pytest.raises(ProtocolError) as caught:
                await going
            assert caught.value.code == "server-stopped"

    run(go())


def test_a_run_goes_on_from_the_state_of_the_server_before(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=3), completed=1) as story:
            said = await patience_of(story)
            assert said.startswith("gave up waiting before round 2 began: alice, bob")
        async with Story(course(rounds=3), completed=1) as story:
            first = await story.join_all()
            assert (first.header.round, first.header.final) == (2, False)
            await story.whole_round(2)
            assert [it.round for it in story.audit.rounds] == [2]

    run(go())


def test_a_run_that_was_trained_to_its_end_goes_on_with_the_reports(run: Run) -> None:
    async def go() -> None:
        async with Story(course(rounds=3), completed=3) as story:
            assert (await story.join_all()).header.final
            for party in PARTIES:
                story.coordinator.finish(participant(party), report(1, accuracy=1))
            assert await story.coordinator.run(patience_seconds=HOUR) == {"accuracy": 1}
            assert story.audit.rounds == []

    run(go())


def test_a_state_that_cannot_be_kept_fails_the_run(run: Run) -> None:
    class Full(KeptInMemory):
        @override
        def seal(self, completed: int, *, head: bytes) -> Kept:
            raise StorageError("no room", code="mirror-unwritable")

    async def go() -> None:
        async with Story() as story:
            story.coordinator._publisher._saves._keeper = Full(story.state)
            await story.join_all()
            # Its model went out; the next one does not.
            second = await story.whole_round(1)
            assert second.header.round == 2
            with pytest.raises(StorageError):
                await story.whole_round(2)
            assert story.coordinator.failure is not None
            assert story.coordinator.failure.code == "mirror-unwritable"
            assert [it.round for it in story.audit.rounds] == [1]
            with pytest.raises(StorageError):
                await story.coordinator.rest()

    run(go())
