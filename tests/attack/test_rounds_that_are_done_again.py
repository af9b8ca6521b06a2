"""The server's host has a round done again by others, to get at one party's update.

The mean over everybody and the mean over everybody but bob show what bob sent. With a
number as quorum the host decides who comes too late, and an accomplice among the
parties shows it the models. So it needs two means of one round: it lets the first out
to the accomplice alone, puts the state of before back (or has kept a second server at
it), and lets the round be done again without bob. The server's own custodian is kept
from hearing of it for as long as a custodian may be silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import pytest
from examples.softmax.task import Softmax, SoftmaxLearner
from tests.support.custodians import Office
from tests.support.dying_server import Fate, Fates
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import CLASSES, FEATURES, put, with_quorum
from tests.support.run_audit import entries_of, links_of
from tests.support.running import Run, until
from tests.support.stopped_run import cloned, refusal_of
from tests.support.whole_run import (
    PATIENCE_SECONDS,
    Scene,
    make_scene,
    sources,
    task,
)
from typing_extensions import override

from cloister.custody.client import CustodianLine
from cloister.errors import CloisterError, VerificationError
from cloister.federation import ports
from cloister.federation import server as server_module
from cloister.federation.audit_records import Participant, RoundCompleted
from cloister.federation.audit_verification import verify_audit
from cloister.federation.auditing.report import Anchors
from cloister.federation.contribution import Context, Contribution
from cloister.federation.course import Course, course_of
from cloister.federation.custodian import Custodian
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import UpdateHeader
from cloister.federation.mirroring import journal_place
from cloister.federation.own_strategy import OwnStrategy
from cloister.federation.published import Published
from cloister.federation.rounds.refusals import late
from cloister.federation.server import Outcome
from cloister.federation.task import LearnerSettings
from cloister.federation.training_service import TrainingService
from cloister.plan.plan import Plan, plan_hash
from cloister.ratls.channels import Guard
from cloister.ratls.mark import Mark
from cloister.storage.records import DataSource

PARTIES = ("alice", "bob", "carol", "dave")
ACCOMPLICE, VICTIM = "alice", "bob"
OTHERS = tuple(it for it in PARTIES if it != ACCOMPLICE)
WITHOUT_VICTIM = tuple(it for it in PARTIES if it != VICTIM)
# The round that is to be done twice, and how many contribute at least.
ROUND, QUORUM = 2, 3
# How long a round waits for who does not come.
SOON = 0.2


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(
        tmp_path_factory.mktemp("keys"),
        more_workers=PARTIES[2:],
        change=lambda tree: with_quorum(
            put(tree, ("training", "rounds"), 100), QUORUM, deadline_seconds=1
        ),
    )


class Accomplice(Softmax):
    """The plan's task, at a party that keeps every model it gets.

    Args:
        meanwhile: Called in its learner's thread before the round that is to be done
            twice: the state before it is on the disk then.
    """

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__(FEATURES, CLASSES)
        self.seen: list[bytes] = []
        self._meanwhile = meanwhile

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        accomplice = self

        class Learner(SoftmaxLearner):
            @override
            def load(self, model: ModelBuffer) -> None:
                accomplice.seen.append(model.data.tobytes())
                if len(accomplice.seen) == ROUND:
                    accomplice._meanwhile()
                super().load(model)

        return Learner(self, source, settings)


@dataclass(slots=True, kw_only=True)
class Way:
    """What the host lets through on the training port; it drops all else.

    Attributes:
        deadline_seconds: The deadline of rounds, where everybody else is quick.
        hidden: Parties that get no model of a round after `ROUND`.
        silenced: Parties whose updates of `ROUND` do not arrive.
        over: Set when a server ends, and its connections with it.
    """

    deadline_seconds: float = PATIENCE_SECONDS
    hidden: Sequence[str] = ()
    silenced: Sequence[str] = ()
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def drop(self) -> NoReturn:
        """Lets nothing of a call through."""
        await self.over.wait()
        raise late(ROUND)


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    """The way to all servers of the story."""
    way = Way()

    class Reached(TrainingService):
        @override
        async def _send(self, model: Published, context: Context, guard: Guard) -> None:
            if model.header.round > ROUND and guard.peer.party in way.hidden:
                await way.drop()
            await super()._send(model, context, guard)

        @override
        async def _take_update(
            self,
            call: Contribution,
            guard: Guard,
            header: UpdateHeader,
            by: Participant,
        ) -> None:
            if header.round == ROUND and guard.peer.party in way.silenced:
                await way.drop()
            await super()._take_update(call, guard, header, by)

    def short_course_of(plan: Plan, **more: OwnStrategy | None) -> Course:
        # A plan counts whole seconds; here everybody is fast.
        return replace(course_of(plan, **more), deadline_seconds=way.deadline_seconds)

    monkeypatch.setattr(ports, "TrainingService", Reached)
    monkeypatch.setattr(server_module, "course_of", short_course_of)
    return way


@dataclass(slots=True, kw_only=True)
class KeptAway(Custodian):
    """A line to a custodian on which the host lets no mark of `ROUND` through.

    Attributes:
        line: The line.
        asked: How many marks it has held back.
        open: Set when it lets all through.
    """

    line: CustodianLine
    asked: int = 0
    open: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    @override
    def mark(self) -> Mark | None:
        return self.line.mark

    @override
    async def renew(self) -> None:
        await self.line.renew()

    @override
    async def deposit(self, mark: Mark) -> None:
        if mark.round >= ROUND:
            self.asked += 1
            await self.open.wait()
        await self.line.deposit(mark)


def rounds_of(scene: Scene) -> list[tuple[int, tuple[str, ...]]]:
    """Returns the rounds in a directory's log, and whose updates counted."""
    return [
        (entry.round, tuple(it.party for it in entry.participants))
        for entry in entries_of(scene.directory)
        if isinstance(entry, RoundCompleted)
    ]


def working(
    scene: Scene, *names: str, as_it: Softmax | None = None
) -> list[asyncio.Task[None]]:
    """Has parties work; honest ones, unless another task is given."""
    data = sources(PARTIES)
    return [
        asyncio.ensure_future(scene.work(scene.node(it), as_it or task(), data[it]))
        for it in names
    ]


@asynccontextmanager
async def going_on(*nodes: asyncio.Future[None]) -> AsyncIterator[None]:
    """Ends nodes with the block; until then none of them has ended."""
    try:
        yield
        assert not any(it.done() for it in nodes)
    finally:
        for it in nodes:
            it.cancel()
        await asyncio.gather(*nodes, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server at work.

    Attributes:
        task: Its task.
        custodian: The way to its custodian.
    """

    task: asyncio.Future[Outcome]
    custodian: KeptAway

    async def until(self, reached: Callable[[], object]) -> None:
        """Waits for something, for as long as the server is at work."""
        await until(lambda: bool(reached()) or self.task.done())
        assert not self.task.done()


@asynccontextmanager
async def serving(
    scene: Scene, office: Office, *, way: Way, kept_away: bool
) -> AsyncIterator[Serving]:
    """Runs a server for as long as the block lasts."""
    node = scene.node("aggregator")
    async with office.line(node) as line:
        custodian = KeptAway(line=line)
        if not kept_away:
            custodian.open.set()
        going = asyncio.ensure_future(scene.serve(node, task(), custodian=custodian))
        try:
            yield Serving(task=going, custodian=custodian)
        finally:
            way.over.set()
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
            way.over.clear()


@asynccontextmanager
async def killed_after(fates: Fates) -> AsyncIterator[None]:
    """Kills the server of a block at its end: it says no other word."""
    fate = fates.now = Fate(point="model sealed", round=ROUND)
    try:
        yield
    finally:
        fate.dead = True


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch) -> Fates:
    """Lets servers die."""
    return Fates(monkeypatch)


def state_of(scene: Scene) -> Path:
    """Returns where the server's state lies."""
    return scene.place("aggregator").path


def known(scene: Scene) -> int:
    """Returns the round that the server's custodian knows."""
    mark = scene.custodians.mark("aggregator")
    assert mark is not None
    return mark.round


@pytest.mark.parametrize("journal", ["deleted", "intact"])
def test_a_state_that_is_put_back_shows_nobody_two_means_of_one_round(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    fates: Fates,
    way: Way,
    journal: str,
) -> None:
    scene, copies = make_scene(tmp_path / "run", federation), list[bytes]()
    first = Accomplice(lambda: copies.append(state_of(scene).read_bytes()))
    second = Accomplice()

    async def first_time() -> None:
        """Everybody is in the round, and only the accomplice is to get what it made."""
        way.hidden = OTHERS
        async with (
            scene.custodians.office("aggregator") as office,
            serving(scene, office, way=way, kept_away=True) as server,
            killed_after(fates),
            going_on(*working(scene, ACCOMPLICE, as_it=first)),
        ):
            await server.until(lambda: server.custodian.asked)

    async def second_time() -> None:
        """The round is done again from the state before it, without bob."""
        way.hidden, way.silenced = (), (VICTIM,)
        way.deadline_seconds = SOON
        state_of(scene).write_bytes(copies[0])
        if journal == "deleted":
            journal_place(scene.place("aggregator")).path.unlink()
        async with (
            scene.custodians.office("aggregator") as office,
            serving(scene, office, way=way, kept_away=False) as server,
            killed_after(fates),
            going_on(*working(scene, ACCOMPLICE, as_it=second)),
        ):
            await server.until(lambda: len(second.seen) > 1)

    async def story() -> None:
        async with going_on(*working(scene, *OTHERS)):
            await first_time()
            # The round is made, durable and recorded; nobody has the model.
            assert rounds_of(scene)[ROUND - 1 :] == [(ROUND, PARTIES)]
            assert len(first.seen) == ROUND
            assert known(scene) == ROUND - 1
            await second_time()

    run(story())
    fates.now = None
    # What the accomplice has: the model before the round, of both servers, and one
    # that the round led to.
    assert len(first.seen) == len(second.seen) == ROUND
    assert first.seen[-1] == second.seen[0] != second.seen[1]
    assert rounds_of(scene)[ROUND - 1 :] == [(ROUND, PARTIES), (ROUND, WITHOUT_VICTIM)]
    # From here on the round is over for good: the custodian heard of it first.
    assert known(scene) == ROUND
    state_of(scene).write_bytes(copies[0])
    assert run(refusal_of(scene)).code == "state-rolled-back"
    assert state_of(scene).read_bytes() == copies[0]
    assert rounds_of(scene)[ROUND:] == [(ROUND, WITHOUT_VICTIM)]
    # Whoever audits the run sees that a round was done again, and by whom.
    report = verify_audit(
        links_of(scene.directory),
        anchors=Anchors(plan_hash=plan_hash(federation.plan)),
        heads=scene.heads(),
    )
    assert [it.lost for it in report.servers] == [0, 1]


def test_of_two_servers_side_by_side_the_older_one_shows_nobody_what_it_made(
    run: Run, federation: Federation, tmp_path: Path, way: Way
) -> None:
    one, two = make_scene(tmp_path / "run", federation), list[Scene]()
    first = Accomplice(lambda: two.append(cloned(one, "two")))
    second = Accomplice()

    async def story() -> None:
        way.hidden = OTHERS
        async with (
            one.custodians.office("aggregator") as office,
            one.custodians.office(ACCOMPLICE) as accomplices,
            serving(one, office, way=way, kept_away=True) as older,
        ):
            alice, again = one.node(ACCOMPLICE), one.node(ACCOMPLICE)
            async with accomplices.line(alice) as line:
                at_the_older = [
                    *working(one, VICTIM),
                    asyncio.ensure_future(
                        one.work(alice, first, sources()[ACCOMPLICE], custodian=line)
                    ),
                ]
                async with going_on(*working(one, *OTHERS[1:])):
                    await older.until(lambda: older.custodian.asked)
                # Carol's and dave's machines are started again, and led elsewhere.
                way.hidden, way.deadline_seconds = (), SOON
                [other] = two
                async with (
                    serving(other, office, way=way, kept_away=False) as newer,
                    accomplices.line(again) as other_line,
                    going_on(
                        *working(other, *OTHERS[1:]),
                        asyncio.ensure_future(
                            other.work(
                                again,
                                second,
                                sources()[ACCOMPLICE],
                                custodian=other_line,
                            )
                        ),
                    ),
                ):
                    await newer.until(lambda: len(second.seen) > 1)
                    # Whatever the custodian hears now, it believes the newer one.
                    older.custodian.open.set()
                    with pytest.raises(VerificationError) as caught:
                        await older.task
                    assert caught.value.code == "warrant-superseded"
                    for worker in at_the_older:
                        with pytest.raises(CloisterError):
                            await worker

    run(story())
    [other] = two
    assert len(first.seen) == ROUND
    assert first.seen[-1] == second.seen[0]
    # Two logs have the round; of one of them nobody outside of that host heard.
    assert rounds_of(one)[ROUND - 1 :] == [(ROUND, PARTIES)]
    assert rounds_of(other)[ROUND - 1] == (ROUND, WITHOUT_VICTIM)
    assert known(one) >= ROUND
    assert run(refusal_of(one)).code == "audit-cut"
