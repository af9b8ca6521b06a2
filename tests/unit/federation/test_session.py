"""A worker's rounds while servers die under it, and others take their places."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation, HandClock, make_federation
from tests.support.odd_server import (
    LAYOUT,
    Answer,
    MortalTraining,
    OddTraining,
    model,
    odd_server,
)
from tests.support.plan_tree import Tree, put, with_quorum
from tests.support.remembering_task import Remembering
from tests.support.running import Run
from tests.support.training_calls import until
from tests.support.whole_run import Hooked, Scene, make_scene, sources, task
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    ConfigError,
    ProtocolError,
    VerificationError,
)
from cloister.federation import membership, outages, warranting
from cloister.federation.messages import Finished, UpdateHeader, encode_header
from cloister.federation.task import Task
from cloister.federation.trainer import Trainer
from cloister.ratls.audit_key import verify_countersignature
from cloister.ratls.node import Node

STATE, OTHER = b"\1" * 32, b"\2" * 32


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that went away are looked for without delay."""
    monkeypatch.setattr(outages, "LAST_PAUSE_SECONDS", 0.001)


def script(
    *rounds: int,
    epoch: int,
    last: int | None = None,
    stated: Callable[[int], bytes | None] = lambda call: STATE if call == 1 else None,
) -> Answer:
    """Returns models of some rounds, one a call, with heads of the server's own.

    Args:
        rounds: One a call.
        epoch: The server's.
        last: The final one.
        stated: What state each call's model says.
    """

    def answer(call: int) -> list[bytes]:
        if not 1 <= call <= len(rounds):
            return [encode_header(Finished())]
        number = rounds[call - 1]
        return model(
            number,
            final=number == last,
            state=stated(call),
            audit_head=head(number, epoch=epoch),
        )

    return answer


def head(number: int, *, epoch: int) -> bytes:
    return bytes([number]) * 16 + bytes([epoch]) * 16


class Servers:
    """Servers of one scene, one after another; each has the next epoch.

    Attributes:
        scene: The scene.
        federation: Whose.
    """

    def __init__(self, federation: Federation, scene: Scene) -> None:
        self.federation = federation
        self.scene = scene

    async def play(
        self, servers: Sequence[OddTraining], worker: Node, its: Task | None = None
    ) -> CloisterError | None:
        """Has a worker train while servers come and go; returns why it stopped."""
        working = asyncio.ensure_future(
            self.scene.work(worker, its or task(), sources()[worker.party])
        )
        for epoch, odd in enumerate(servers, 1):
            node = self.federation.node("aggregator", epoch=epoch)
            async with odd_server(node, self.scene, odd):
                await until(partial(_is_over, working, odd))
        try:
            await working
        except CloisterError as error:
            return error
        return None


def _is_over(working: asyncio.Future[None], odd: OddTraining) -> bool:
    dying = isinstance(odd, MortalTraining) and odd.dying.is_set()
    return working.done() or dying


def play(
    run: Run,
    directory: Path,
    servers: Sequence[Callable[[], OddTraining]],
    *,
    change: Callable[[Tree], Tree] = lambda tree: tree,
) -> tuple[list[OddTraining], CloisterError | None, Scene]:
    """Has alice train by a plan of its own for one server after another."""
    federation = make_federation(directory / "federation", change=change)
    scene = make_scene(directory / "run", federation)

    async def story() -> tuple[list[OddTraining], CloisterError | None]:
        odd = [make() for make in servers]
        alice = federation.node("alice")
        error = await Servers(federation, scene).play(odd, alice)
        for epoch, it in enumerate(odd, 1):
            for header in it.headers:
                assert_signed(alice, header, head=head(header.round, epoch=epoch))
        return odd, error

    odd, error = run(story())
    return odd, error, scene


def assert_signed(node: Node, header: UpdateHeader, *, head: bytes) -> None:
    verify_countersignature(
        node.identity.tls_spki,
        header.countersignature,
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        round_number=header.round,
        head=head,
    )


def rounds_of(odd: OddTraining) -> list[int]:
    return [header.round for header in odd.headers]


def values_of(odd: OddTraining) -> dict[int, bytes]:
    """Returns the values of each round's update."""
    return {
        header.round: update[-LAYOUT.size_bytes :]
        for header, update in zip(odd.headers, odd.updates, strict=True)
    }


def every(rounds: int) -> Callable[[Tree], Tree]:
    return lambda tree: put(tree, ("rounds", "mirror_every"), rounds)


def test_a_round_of_a_server_that_died_is_trained_again_for_the_next_to_the_bit(
    run: Run, tmp_path: Path
) -> None:
    (old, new), error, scene = play(
        run,
        tmp_path,
        [
            lambda: MortalTraining(script(1, 2, 3, epoch=1), dies_at=4),
            # The state after round 2 was not on its disk yet.
            lambda: OddTraining(script(2, 3, 4, epoch=2, last=4)),
        ],
    )
    assert error is None
    assert rounds_of(old) == [1, 2, 3]
    assert rounds_of(new) == [2, 3]
    before, after = values_of(old), values_of(new)
    assert [before[2], before[3]] == [after[2], after[3]]
    [lost] = scene.events("alice", "server-lost")
    assert lost["code"] == "server-gone"
    [changed] = scene.events("alice", "server-changed")
    assert (changed["round"], changed["next_round"]) == (3, 2)
    trained = [line["round"] for line in scene.events("alice", "round")]
    assert trained == [1, 2, 2, 3]
    epochs = [line["epoch"] for line in scene.events("alice", "server-attested")]
    assert epochs == [1, 2]


def test_no_server_is_further_behind_than_one_that_died_can_be(
    run: Run, tmp_path: Path
) -> None:
    _, error, _ = play(
        run,
        tmp_path,
        [
            lambda: MortalTraining(script(1, 2, 3, epoch=1), dies_at=4),
            lambda: OddTraining(script(1, epoch=2)),
        ],
    )
    assert isinstance(error, VerificationError)
    assert error.code == "state-rolled-back"
    assert error.expected.startswith("round 1 or later")


def test_servers_that_die_again_and_again_do_not_lead_back_step_by_step(
    run: Run, tmp_path: Path
) -> None:
    (_, second, third), error, _ = play(
        run,
        tmp_path,
        [
            lambda: MortalTraining(script(1, 2, 3, 4, 5, epoch=1), dies_at=6),
            lambda: MortalTraining(script(2, 3, epoch=2), dies_at=3),
            lambda: OddTraining(script(1, epoch=3)),
        ],
        change=every(3),
    )
    assert rounds_of(second) == [2, 3]
    assert rounds_of(third) == []
    assert error is not None
    assert error.code == "state-rolled-back"


def test_with_a_number_as_quorum_no_round_is_lost(run: Run, tmp_path: Path) -> None:
    _, error, _ = play(
        run,
        tmp_path,
        [
            lambda: MortalTraining(script(1, 2, 3, epoch=1), dies_at=4),
            lambda: OddTraining(script(2, epoch=2)),
        ],
        change=lambda tree: with_quorum(tree, 2),
    )
    assert error is not None
    assert error.code == "state-rolled-back"
    assert error.expected.startswith("round 2 or later")


@pytest.mark.parametrize(
    ("first", "state", "code"),
    [(2, STATE, "state-rolled-back"), (3, OTHER, "state-forked")],
    ids=["behind", "beside"],
)
def test_what_a_server_stated_none_after_it_may_have_lost(
    run: Run, tmp_path: Path, first: int, state: bytes, code: str
) -> None:
    """Its state is on the disk then; whether the custodian knows already or not."""
    (_, new), error, _ = play(
        run,
        tmp_path,
        [
            lambda: MortalTraining(
                script(1, 2, 3, epoch=1, stated=lambda _: STATE), dies_at=4
            ),
            lambda: OddTraining(script(first, epoch=2, stated=lambda _: state)),
        ],
        change=every(3),
    )
    assert error is not None
    assert error.code == code
    assert rounds_of(new) == []


def test_a_new_server_hears_the_report_that_the_former_may_have_had(
    run: Run, tmp_path: Path
) -> None:
    (old, new), error, scene = play(
        run,
        tmp_path,
        [
            lambda: MortalTraining(
                script(1, 2, epoch=1, last=2, stated=lambda _: STATE), dies_at=3
            ),
            lambda: OddTraining(script(2, epoch=2, last=2)),
        ],
    )
    assert error is None
    assert old.reports == []
    assert len(new.reports) == 1
    assert len(scene.events("alice", "finished")) == 1


def test_a_report_is_signed_for_the_server_that_has_it(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation)

    async def story() -> OddTraining:
        old = MortalTraining(script(2, epoch=1, last=2), dies_at=2)
        new = OddTraining(script(2, epoch=2, last=2))
        assert await Servers(federation, scene).play([old, new], alice) is None
        return new

    [report] = run(story()).reports
    verify_countersignature(
        alice.identity.tls_spki,
        report.countersignature,
        run_id=alice.plan.run_id,
        plan_hash=alice.plan_hash,
        round_number=2,
        head=head(2, epoch=2),
    )


def test_a_server_that_was_stopped_is_waited_for_like_one_that_died(
    run: Run, tmp_path: Path
) -> None:
    def stopped() -> OddTraining:
        # Call 3 asks for the model again, and call 4 brings the update again.
        return OddTraining(
            script(1, 0, 1, 2, epoch=1, last=2), refusals={2: "server-stopped"}
        )

    [odd], error, _ = play(run, tmp_path, [stopped])
    assert error is None
    assert rounds_of(odd) == [1, 1]
    assert odd.updates[0] == odd.updates[1]


def test_a_server_that_takes_updates_and_never_counts_one_is_given_up(
    run: Run, tmp_path: Path
) -> None:
    """Each time it gives a model, so it is there; and yet no round comes of it."""

    def flickering() -> OddTraining:
        stops = dict.fromkeys(range(2, 200, 2), "server-stopped")
        return OddTraining(script(*(200 * (1,)), epoch=1), refusals=stops)

    [odd], error, scene = play(run, tmp_path, [flickering])
    assert isinstance(error, ProtocolError)
    assert error.code == "server-stopped"
    assert len(odd.headers) == outages.MOST_LOSSES + 1
    assert len(set(odd.updates)) == 1
    assert scene.events("alice", "round") == []


def test_a_server_that_never_comes_back_is_waited_for_as_long_as_at_first(
    run: Run, federation: Federation, alice: Node, tmp_path: Path
) -> None:
    scene = make_scene(tmp_path / "run", federation, patience_seconds=0.3)

    async def story() -> CloisterError | None:
        odd = MortalTraining(script(1, epoch=1), dies_at=2)
        return await Servers(federation, scene).play([odd], alice)

    error = run(story())
    assert isinstance(error, ProtocolError)
    assert error.code == "server-unreachable"
    [waited] = scene.events("alice", "waiting-for-server")
    assert waited["code"] == "server-unreachable"


def test_a_learner_with_a_state_of_its_own_goes_on_to_the_bit_when_all_have_died(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    """Server and worker die with three rounds trained, and two of them are lost."""
    quiet, broken = (
        Servers(federation, make_scene(tmp_path / name, federation))
        for name in ("quiet", "broken")
    )

    async def story() -> tuple[OddTraining, OddTraining, OddTraining]:
        whole = OddTraining(script(1, 2, 3, 4, epoch=1, last=4))
        alice = federation.node("alice")
        assert await quiet.play([whole], alice, Remembering()) is None
        old = MortalTraining(script(1, 2, 3, epoch=1), dies_at=4)
        new = OddTraining(script(2, 3, 4, epoch=2, last=4))
        async with odd_server(federation.node("aggregator"), broken.scene, old):
            dying = asyncio.ensure_future(
                broken.scene.work(
                    federation.node("alice"), Remembering(), sources()["alice"]
                )
            )
            await old.dying.wait()
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
        again = federation.node("alice")
        second = federation.node("aggregator", epoch=2)
        async with odd_server(second, broken.scene, new):
            await broken.scene.work(again, Remembering(), sources()["alice"])
        return whole, old, new

    whole, old, new = map(values_of, run(story()))
    assert old == whole
    assert new == {number: whole[number] for number in (2, 3)}
    assert whole[3] != whole[2]


def test_a_learner_with_a_state_of_its_own_needs_a_key_to_keep_it_under(
    run: Run, alice: Node
) -> None:
    with ThreadPoolExecutor(1) as executor:
        trainer = Trainer(
            alice, Remembering(), executor=executor, mirror=None, former=None
        )
        with pytest.raises(ConfigError) as caught:
            run(trainer.prepare(sources()["alice"]))
    assert caught.value.code == "state-key-missing"


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks are looked at without delay."""
    for module in (warranting, membership):
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)


def half_an_hour(tree: Tree) -> Tree:
    return put(tree, ("admission",), {"life_seconds": 1800})


def servers_met(scene: Scene) -> int:
    log = scene.directory / "logs" / "alice.jsonl"
    return log.read_text().count('"server-attested"') if log.exists() else 0


@pytest.mark.usefixtures("watched")
def test_an_update_goes_to_no_server_but_the_one_whose_model_it_is_of(
    run: Run, clock: HandClock, tmp_path: Path
) -> None:
    """The server is replaced while the worker computes; a renewal meets the new one."""
    federation = make_federation(tmp_path / "federation", change=half_an_hour)
    scene = make_scene(tmp_path / "run", federation, clock=clock)
    begun, held = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert held.wait(10)

    async def story() -> tuple[OddTraining, OddTraining]:
        first, second = (
            federation.node("aggregator", epoch=epoch, clock=clock) for epoch in (1, 2)
        )
        old = OddTraining(script(1, epoch=1))
        new = OddTraining(script(1, 2, epoch=2, last=2))
        alice = federation.node("alice", clock=clock)
        async with odd_server(first, scene, old):
            working = asyncio.ensure_future(
                scene.work(alice, Hooked({1: hold}), sources()["alice"])
            )
            await until(begun.is_set)
        async with odd_server(second, scene, new):
            clock.forward(timedelta(minutes=16))
            await until(lambda: servers_met(scene) == 2)
            held.set()
            await working
        [header] = new.headers
        assert_signed(alice, header, head=head(1, epoch=2))
        return old, new

    try:
        old, new = run(story())
    finally:
        held.set()
    assert old.headers == []
    assert rounds_of(new) == [1]
    assert scene.events("alice", "server-lost") == []


class SlowTraining(MortalTraining):
    """Answers that call after all, when it is told to; another server is there then."""

    def __init__(self, answer: Answer, *, dies_at: int) -> None:
        super().__init__(answer, dies_at=dies_at)
        self.free = asyncio.Event()

    @override
    async def die(self) -> None:
        self.dying.set()
        await self.free.wait()


@pytest.mark.usefixtures("watched")
def test_a_former_server_is_not_listened_to_once_a_newer_one_was_met(
    run: Run, clock: HandClock, tmp_path: Path
) -> None:
    federation = make_federation(tmp_path / "federation", change=half_an_hour)
    scene = make_scene(tmp_path / "run", federation, clock=clock)

    async def story() -> OddTraining:
        first, second = (
            federation.node("aggregator", epoch=epoch, clock=clock) for epoch in (1, 2)
        )
        # It answers the first update with the second round, as if nothing were.
        old = SlowTraining(script(1, 2, epoch=1), dies_at=2)
        new = OddTraining(script(1, 2, epoch=2, last=2))
        alice = federation.node("alice", clock=clock)
        async with odd_server(first, scene, old) as (training, enrolment):
            working = asyncio.ensure_future(
                scene.work(alice, task(), sources()["alice"])
            )
            await old.dying.wait()
            await enrolment.stop(0)
            # It listens no more, and its open call goes on.
            stopping = asyncio.ensure_future(training.stop(5))
            await asyncio.sleep(0)
            async with odd_server(second, scene, new):
                clock.forward(timedelta(minutes=16))
                await until(lambda: servers_met(scene) == 2)
                old.free.set()
                await working
            await stopping
        assert rounds_of(old) == [1]
        return new

    assert rounds_of(run(story())) == [1]
    trained = [line["round"] for line in scene.events("alice", "round")]
    assert trained == [1]
