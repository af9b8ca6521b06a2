"""The worker against an attested server that does not keep to the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

import grpc
import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.odd_server import (
    LAYOUT,
    Answer,
    Context,
    OddTraining,
    model,
    odd_server,
)
from tests.support.plan_tree import Tree, add_worker, average, put, with_quorum
from tests.support.running import Run
from tests.support.training_calls import until
from tests.support.whole_run import Scene, make_scene, sources, task
from typing_extensions import override

from cloister.errors import (
    CloisterError,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.federation import outages
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    Finished,
    UpdateHeader,
    encode_header,
)
from cloister.federation.wire_format import wire_format
from cloister.plan.plan import PlanHash
from cloister.ratls.audit_key import verify_countersignature
from cloister.ratls.channels import (
    MAX_CHUNK_BYTES,
    open_channel,
)
from cloister.ratls.enrolment_service import METHOD
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import Limits
from cloister.ratls.node import Node

OLD_HEAD = b"\x40" * 32
_StreamStream: TypeAlias = "grpc.aio.StreamStreamMultiCallable[bytes, bytes]"


@pytest.fixture
def scene(federation: Federation, tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "run", federation)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that went away are looked for without delay."""
    monkeypatch.setattr(outages, "LAST_PAUSE_SECONDS", 0.001)


async def work(scene: Scene, node: Node) -> None:
    await scene.work(node, task(), sources()[node.party])


def error_with(
    run: Run, server: Node, alice: Node, scene: Scene, *, answer: Answer
) -> CloisterError:
    """Returns the error a worker ends with."""

    async def story() -> CloisterError:
        async with odd_server(server, scene, OddTraining(answer)):
            with pytest.raises(CloisterError) as caught:
                await work(scene, alice)
        return caught.value

    return run(story())


def test_a_worker_trains_until_the_server_says_final(
    run: Run, server: Node, alice: Node, scene: Scene
) -> None:
    async def story() -> None:
        def answer(call: int) -> list[bytes]:
            if call < 0:
                return [encode_header(Finished())]
            return model(call, final=call == 4)

        odd = OddTraining(answer)
        async with odd_server(server, scene, odd):
            await work(scene, alice)
        assert [header.round for header in odd.headers] == [1, 2, 3]
        rounds = scene.events("alice", "round")
        assert [line["round"] for line in rounds] == [1, 2, 3]

    run(story())


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda _: [], "call-short"),
        (lambda _: [b"\xff"], "header-malformed"),
        (lambda _: [encode_header(Finished())], "header-malformed"),
        (lambda _: model(1)[1:], "header-malformed"),
        (lambda _: model(1)[:1], "transfer-short"),
        (lambda _: [*model(1), b"\0"], "chunk-size"),
        (lambda _: [model(1)[0], model(1)[1][:-1]], "chunk-size"),
        (lambda _: model(1, layout="0" * 64), "layout-differs"),
        (lambda call: model(2 * call), "round-order"),
        (lambda _: model(1), "round-order"),
        (lambda call: model(call, final=True), "header-malformed"),
        (lambda _: [bytes(MAX_CHUNK_BYTES + 1)], "server-gone"),
    ],
)
def test_a_server_that_breaks_the_protocol_ends_the_worker_with_its_reason(
    run: Run, nodes: tuple[Node, Node], scene: Scene, answer: Answer, code: str
) -> None:
    error = error_with(run, *nodes, scene, answer=answer)
    assert isinstance(error, ProtocolError)
    assert error.code == code


def test_a_server_that_goes_back_a_round_is_refused(
    run: Run, nodes: tuple[Node, Node], scene: Scene
) -> None:
    error = error_with(run, *nodes, scene, answer=lambda call: model(6 - call))
    assert isinstance(error, VerificationError)
    assert error.code == "state-rolled-back"
    assert error.expected == "round 4 or later"
    assert error.got == "round 3"


def quorum_of_two(tree: Tree) -> Tree:
    return with_quorum(tree, 2)


def of_three_two_are_drawn(tree: Tree) -> Tree:
    return put(average(add_worker(tree, "carol")), ("rounds", "sample"), 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of a worker.

    Attributes:
        odd: The server that it met.
        error: What it ended with.
        scene: Its scene.
    """

    odd: OddTraining
    error: CloisterError | None
    scene: Scene


class Play(Protocol):
    """Has alice train by a plan of its own, for a server that plays a script."""

    def __call__(
        self, odd: OddTraining, *, change: Callable[[Tree], Tree]
    ) -> Played: ...


@pytest.fixture
def play(run: Run, tmp_path: Path) -> Play:
    def play_it(odd: OddTraining, *, change: Callable[[Tree], Tree]) -> Played:
        federation = make_federation(tmp_path / "federation", change=change)
        scene = make_scene(tmp_path / "run", federation)

        async def story() -> CloisterError | None:
            server, alice = federation.node("aggregator"), federation.node("alice")
            async with odd_server(server, scene, odd):
                try:
                    await work(scene, alice)
                except CloisterError as error:
                    return error
            return None

        return Played(odd=odd, error=run(story()), scene=scene)

    return play_it


def rounds_then_final(*rounds: int) -> Answer:
    """Returns models of some rounds, one a call; the last is the final one."""

    def answer(call: int) -> list[bytes]:
        if call < 0:
            return [encode_header(Finished())]
        return model(rounds[call - 1], final=call == len(rounds))

    return answer


@pytest.mark.parametrize("change", [quorum_of_two, of_three_two_are_drawn])
def test_a_worker_trains_in_the_rounds_in_which_it_has_a_seat(
    play: Play, change: Callable[[Tree], Tree]
) -> None:
    played = play(OddTraining(rounds_then_final(1, 2, 5, 9, 13)), change=change)
    assert played.error is None
    assert [header.round for header in played.odd.headers] == [1, 2, 5, 9]
    lines = played.scene.events("alice", "round")
    assert [line["round"] for line in lines] == [1, 2, 5, 9]


def test_no_round_comes_twice_where_rounds_go_on_without_some(play: Play) -> None:
    played = play(OddTraining(rounds_then_final(1, 2, 2, 3)), change=quorum_of_two)
    assert played.error is not None
    assert played.error.code == "round-order"
    assert played.error.expected == "round 3 or later"


@pytest.mark.parametrize("last", [4, 13])
def test_a_worker_whose_update_is_late_trains_on(play: Play, last: int) -> None:
    # Call 3 brings the update of round 2, and call 4 asks for the model that is out.
    rounds = (1, 2, 0, last) if last == 13 else (1, 2, 0, last, 13)
    odd = OddTraining(rounds_then_final(*rounds), refusals={3: "update-late"})
    played = play(odd, change=quorum_of_two)
    assert played.error is None
    assert [header.round for header in odd.headers] == [1, 2, 4][: len(rounds) - 2]
    # Of a late update no more is said than its round.
    [line] = played.scene.events("alice", "update-late")
    assert line["round"] == 2
    assert line.keys() == {"round", "event", "level", "timestamp", "party"}
    trained = [line["round"] for line in played.scene.events("alice", "round")]
    assert trained == [1, 4][: len(rounds) - 3]
    assert len(played.scene.events("alice", "finished")) == 1


def test_an_update_that_lost_its_place_is_sent_again_to_the_bit(play: Play) -> None:
    # Call 2 is slow; call 3 asks for the model, and call 4 brings the update again.
    odd = OddTraining(rounds_then_final(1, 0, 1, 2, 13), refusals={2: "transfer-slow"})
    played = play(odd, change=quorum_of_two)
    assert played.error is None
    assert [header.round for header in odd.headers] == [1, 1, 2]
    assert odd.updates[0] == odd.updates[1]
    assert len(played.scene.events("alice", "update-slow")) == 1


def test_an_update_that_is_always_too_slow_ends_the_worker(play: Play) -> None:
    slow = dict.fromkeys((2, 4, 6), "transfer-slow")
    odd = OddTraining(lambda _: model(1), refusals=slow)
    played = play(odd, change=quorum_of_two)
    assert played.error is not None
    assert played.error.code == "transfer-slow"
    assert len(odd.headers) == 3


@pytest.mark.parametrize("code", ["update-not-finite", "chunk-size", "layout-differs"])
def test_an_update_that_is_refused_for_what_it_is_ends_the_worker(
    play: Play, code: str
) -> None:
    odd = OddTraining(model, refusals={2: code})
    played = play(odd, change=quorum_of_two)
    assert played.error is not None
    assert played.error.code == code
    assert len(odd.headers) == 1


def test_an_update_of_local_steps_says_how_many_examples_it_took(play: Play) -> None:
    odd = OddTraining(rounds_then_final(1, 2, 3))
    played = play(odd, change=partial(average, local_steps=3))
    assert played.error is None
    plan = played.scene.custodians.plan.training
    assert {header.examples for header in odd.headers} == {3 * plan.batch_size}


def test_models_and_updates_travel_as_the_plan_says(play: Play) -> None:
    wire = wire_format("bfloat16", LAYOUT, workers=2)
    zeros = ModelBuffer(LAYOUT)

    def answer(call: int) -> list[bytes]:
        if call < 0:
            return [encode_header(Finished())]
        header, _ = model(call, final=call == 3)
        return [header, *(wire.encode(zeros, n) for n in range(wire.chunk_count))]

    def half(tree: Tree) -> Tree:
        return put(tree, ("training", "wire"), "bfloat16")

    played = play(OddTraining(answer), change=half)
    assert played.error is None
    for line in played.scene.events("alice", "round"):
        assert line["bytes_sent"] == line["bytes_received"] == wire.size_bytes
    assert wire.size_bytes < LAYOUT.size_bytes
    headers = [len(encode_header(header)) for header in played.odd.headers]
    sizes = [len(update) for update in played.odd.updates]
    assert sizes == [size + wire.size_bytes for size in headers]


def test_a_server_that_a_party_does_not_know_must_state_its_state(
    run: Run, nodes: tuple[Node, Node], scene: Scene
) -> None:
    error = error_with(
        run, *nodes, scene, answer=lambda number: model(number, state=None)
    )
    assert isinstance(error, VerificationError)
    assert error.code == "state-unstated"
    assert scene.events("alice", "round") == []


@pytest.fixture
def nodes(server: Node, alice: Node) -> tuple[Node, Node]:
    return server, alice


@pytest.mark.usefixtures("hasty")
def test_a_server_that_goes_away_all_the_time_is_named_so_in_the_end(
    run: Run, server: Node, alice: Node, scene: Scene
) -> None:
    def answer(_: int) -> list[bytes]:
        raise RuntimeError("a bug of the server's")

    error = error_with(run, server, alice, scene, answer=answer)
    assert error.code == "server-gone"
    assert "log says why" in error.remedy
    assert len(scene.events("alice", "server-lost")) == outages.MOST_LOSSES + 1


def test_a_worker_waits_for_a_server_that_is_not_there_yet_and_says_so_once(
    run: Run, alice: Node, scene: Scene
) -> None:
    async def story() -> None:
        hasty = replace(scene, patience_seconds=0.2)
        with pytest.raises(ProtocolError) as caught:
            await work(hasty, alice)
        assert caught.value.code == "server-unreachable"
        assert len(scene.events("alice", "waiting-for-server")) == 1

    run(story())


def test_a_worker_waits_for_a_server_that_is_busy(
    run: Run, nodes: tuple[Node, Node], scene: Scene
) -> None:
    def answer(call: int) -> list[bytes]:
        return [encode_header(Finished())] if call < 0 else model(1, final=True)

    async def story() -> None:
        server, alice = nodes
        one = Limits(at_once=1)
        async with (
            odd_server(server, scene, OddTraining(answer), limits=one),
            open_channel(
                scene.enrolment,
                pinned_certificate=await fetch_unverified_certificate(scene.enrolment),
                max_message_bytes=1024,
            ) as channel,
        ):
            stream: _StreamStream = channel.stream_stream(METHOD)
            other = stream()  # holds the only place, and says nothing
            await other.wait_for_connection()
            working = asyncio.ensure_future(work(scene, alice))
            log = scene.directory / "logs" / "alice.jsonl"
            # Or it finds the call ended while it still writes, and waits all the same.
            await until(
                lambda: log.exists() and "waiting-for-server" in log.read_text()
            )
            other.cancel()
            await working
        assert len(scene.events("alice", "waiting-for-server")) == 1
        assert len(scene.events("alice", "finished")) == 1

    run(story())


def test_a_refusal_is_not_waited_out(
    run: Run, server: Node, alice: Node, scene: Scene
) -> None:
    async def story() -> None:
        stranger = replace(alice, plan_hash=PlanHash(alice.plan_hash[::-1]))
        async with (
            odd_server(server, scene, OddTraining(model)),
            scene.custodians.office("alice") as office,
            office.line(alice) as line,
        ):
            with pytest.raises(RefusedByPeer) as caught:
                await scene.work(stranger, task(), sources()["alice"], custodian=line)
        assert caught.value.code == "plan-differs"

    run(story())


@pytest.mark.parametrize("code", ["admission-lapsed", "admission-withdrawn"])
def test_an_update_that_was_not_counted_is_sent_again_to_the_bit(
    run: Run, nodes: tuple[Node, Node], scene: Scene, code: str
) -> None:
    def answer(call: int) -> list[bytes]:
        if call < 0:
            return [encode_header(Finished())]
        # Calls 1 and 3 ask for the model of round 1; call 2 ends with a lapse.
        return model(1 if call <= 3 else call - 2, final=call == 6)

    async def story() -> OddTraining:
        server, alice = nodes
        odd = OddTraining(answer, lapses={2: code})
        async with odd_server(server, scene, odd):
            await work(scene, alice)
        return odd

    odd = run(story())
    assert [header.round for header in odd.headers] == [1, 1, 2, 3]
    assert odd.updates[0] == odd.updates[1]
    assert odd.updates[0] != odd.updates[2]
    assert len(scene.events("alice", "admission-renewed")) == 1
    rounds = scene.events("alice", "round")
    assert [line["round"] for line in rounds] == [1, 2, 3]


@pytest.mark.parametrize(
    ("lapses", "updates"),
    [({1, 2}, 0), ({2, 3}, 1), ({2, 4}, 2)],
)
def test_a_server_that_admits_and_forgets_does_not_keep_a_worker_busy_for_ever(
    run: Run,
    nodes: tuple[Node, Node],
    scene: Scene,
    lapses: set[int],
    updates: int,
) -> None:
    async def story() -> OddTraining:
        server, alice = nodes
        odd = OddTraining(
            lambda _: model(1), lapses=dict.fromkeys(lapses, "admission-lapsed")
        )
        async with odd_server(server, scene, odd):
            with pytest.raises(RefusedByPeer) as caught:
                await work(scene, alice)
        assert caught.value.code == "admission-lapsed"
        return odd

    assert len(run(story()).headers) == updates
    assert len(scene.events("alice", "admission-renewed")) == 1


@pytest.mark.parametrize("code", ["not-admitted", "warrant-superseded"])
def test_a_worker_that_is_out_for_good_does_not_attest_again(
    run: Run, nodes: tuple[Node, Node], scene: Scene, code: str
) -> None:
    async def story() -> None:
        server, alice = nodes
        odd = OddTraining(model, lapses={2: code})
        async with odd_server(server, scene, odd):
            with pytest.raises(RefusedByPeer) as caught:
                await work(scene, alice)
        assert caught.value.code == code

    run(story())
    assert scene.events("alice", "admission-renewed") == []


class Replaced(OddTraining):
    """Ends its second call only when another server has taken its place."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer, lapses={2: "admission-lapsed"})
        self.asked, self.gone = asyncio.Event(), asyncio.Event()

    @override
    async def lapse(self, context: Context, code: str) -> None:
        self.asked.set()
        await self.gone.wait()
        await super().lapse(context, code)


async def meet_another_server(
    federation: Federation,
    scene: Scene,
    *,
    epoch: int,
    first_round: int,
    alice: Node | None = None,
) -> OddTraining:
    """Has alice train in round 5 for a server that another one takes the place of."""
    state = bytes(32)
    old = Replaced(lambda _: model(5, state=state, audit_head=OLD_HEAD))
    new = OddTraining(
        lambda call: (
            [encode_header(Finished())]
            if call < 0
            else model(first_round + call - 1, state=state, final=call == 2)
        )
    )
    first = federation.node("aggregator", epoch=2)
    second = federation.node("aggregator", epoch=epoch)
    async with odd_server(first, scene, old) as (training, enrolment):
        working = asyncio.ensure_future(work(scene, alice or federation.node("alice")))
        await old.asked.wait()
        await until(lambda: scene.custodians.mark("alice") is not None)
        await enrolment.stop(0)
        # It listens no more, and its open call goes on.
        stopping = asyncio.ensure_future(training.stop(5))
        await asyncio.sleep(0)
        async with odd_server(second, scene, new):
            old.gone.set()
            try:
                await working
            finally:
                await stopping
    return new


def test_a_newer_server_that_is_as_far_is_trained_for(
    run: Run, federation: Federation, scene: Scene
) -> None:
    new = run(meet_another_server(federation, scene, epoch=3, first_round=5))
    assert [header.round for header in new.headers] == [5]
    epochs = [line["epoch"] for line in scene.events("alice", "server-attested")]
    assert epochs == [2, 3]
    mark = scene.custodians.mark("alice")
    assert mark is not None
    assert (mark.round, mark.server_epoch) == (5, 3)


@pytest.mark.parametrize(
    ("epoch", "first_round", "code"),
    [(3, 1, "state-rolled-back"), (3, 4, "state-rolled-back"), (1, 5, "epoch-old")],
)
def test_a_server_that_is_older_or_behind_is_not_trained_for(
    run: Run,
    federation: Federation,
    scene: Scene,
    epoch: int,
    first_round: int,
    code: str,
) -> None:
    with pytest.raises(VerificationError) as caught:
        run(
            meet_another_server(federation, scene, epoch=epoch, first_round=first_round)
        )
    assert caught.value.code == code
    mark = scene.custodians.mark("alice")
    assert mark is not None
    assert (mark.round, mark.server_epoch) == (4, 2)
    assert scene.events("alice", "round") == []


def assert_signed(node: Node, header: UpdateHeader, *, head: bytes) -> None:
    verify_countersignature(
        node.identity.tls_spki,
        header.countersignature,
        run_id=node.plan.run_id,
        plan_hash=node.plan_hash,
        round_number=header.round,
        head=head,
    )


def test_an_update_that_is_sent_to_another_server_is_signed_for_its_log(
    run: Run, federation: Federation, alice: Node, scene: Scene
) -> None:
    new = run(
        meet_another_server(federation, scene, epoch=3, first_round=5, alice=alice)
    )
    [header] = new.headers
    assert_signed(alice, header, head=b"\5" * 32)


def test_each_update_is_signed_over_the_head_that_came_with_its_model(
    run: Run, nodes: tuple[Node, Node], scene: Scene
) -> None:
    def answer(call: int) -> list[bytes]:
        if call < 0:
            return [encode_header(Finished())]
        return model(call, final=call == 3)

    async def story() -> OddTraining:
        server, alice = nodes
        odd = OddTraining(answer)
        async with odd_server(server, scene, odd):
            await work(scene, alice)
        return odd

    odd = run(story())
    for header in odd.headers:
        assert_signed(nodes[1], header, head=bytes([header.round]) * 32)
    [last] = odd.reports
    verify_countersignature(
        nodes[1].identity.tls_spki,
        last.countersignature,
        run_id=nodes[1].plan.run_id,
        plan_hash=nodes[1].plan_hash,
        round_number=3,
        head=b"\3" * 32,
    )
    mark = scene.custodians.mark("alice")
    assert mark is not None
    assert (mark.round, mark.audit_head) == (2, b"\3" * 32)


def test_a_second_head_for_a_round_of_one_server_is_refused(
    run: Run, nodes: tuple[Node, Node], scene: Scene
) -> None:
    """Whoever signs two heads of a round helps a server to keep two logs."""

    async def story() -> OddTraining:
        server, alice = nodes
        odd = OddTraining(
            lambda call: model(1, audit_head=bytes([call]) * 32),
            lapses={2: "admission-lapsed"},
        )
        async with odd_server(server, scene, odd):
            with pytest.raises(VerificationError) as caught:
                await work(scene, alice)
        assert caught.value.code == "audit-forked"
        assert caught.value.expected == (b"\1" * 32).hex()
        assert caught.value.got == (b"\3" * 32).hex()
        return odd

    odd = run(story())
    assert len(odd.headers) == 1  # and none for the second
    mark = scene.custodians.mark("alice")
    assert mark is not None
    assert mark.audit_head == b"\1" * 32
