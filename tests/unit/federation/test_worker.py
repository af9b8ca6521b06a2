"""The worker against an attested server that does not keep to the protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from tests.support.federation_in_memory import START
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run
from tests.support.whole_run import Scene, make_scene, sources, task
from typing_extensions import override

from cloister.errors import CloisterError, ProtocolError, RefusedByPeer
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    FINISH,
    Finished,
    ModelHeader,
    UpdateHeader,
    decode_header,
    encode_header,
)
from cloister.ratls.admission import AdmissionTable, new_authority
from cloister.ratls.certificate import make_certificate
from cloister.ratls.channels import (
    MAX_CHUNK_BYTES,
    enrolment_credentials,
    listen,
    server_options,
    training_credentials,
)
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.node import Node

LIFE = timedelta(days=1)
LAYOUT = task().layout()
Answer: TypeAlias = Callable[[int], list[bytes]]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


def model(
    number: int, *, layout: str = LAYOUT.digest(), final: bool = False
) -> list[bytes]:
    """Returns a good model of a round, as messages."""
    header = ModelHeader(round=number, layout=layout, evaluate=False, final=final)
    return [encode_header(header), ModelBuffer(LAYOUT).data.tobytes()]


class OddTraining(grpc.GenericRpcHandler):
    """Answers the n-th call with what it was given, whatever the worker sends."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._calls = 0
        self.headers: list[UpdateHeader] = []

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        if handler_call_details.method == FINISH:
            return grpc.unary_unary_rpc_method_handler(self._finish)
        return grpc.stream_stream_rpc_method_handler(self._talk)

    async def _talk(
        self, messages: AsyncIterator[bytes], _: Context
    ) -> AsyncIterator[bytes]:
        received = [message async for message in messages]
        if len(received) > 1:
            self.headers.append(decode_header(received[0], UpdateHeader))
        self._calls += 1
        for message in self._answer(self._calls):
            yield message

    async def _finish(self, _: bytes, __: Context) -> bytes:
        return self._answer(-1)[0]


@asynccontextmanager
async def odd_server(
    node: Node, scene: Scene, training: grpc.GenericRpcHandler
) -> AsyncIterator[None]:
    """Opens an attested server with a training port of its own ideas."""
    certificate = make_certificate(node.identity, node.platform, at=START, life=LIFE)
    authority = new_authority(at=START, life=LIFE)
    enrolment = EnrolmentService(
        node,
        authority=authority,
        table=AdmissionTable(node.clock),
        log=RecordedLog().logger(),
        on_admitted=lambda _: None,
    )
    ports = (
        (
            scene.training,
            training,
            training_credentials(
                node.identity,
                certificate,
                admission_root_pem=authority.certificate_pem(),
            ),
        ),
        (
            scene.enrolment,
            enrolment,
            enrolment_credentials(node.identity, certificate),
        ),
    )
    servers = []
    for address, handler, credentials in ports:
        server = grpc.aio.server(options=server_options(2 * MAX_CHUNK_BYTES))
        server.add_generic_rpc_handlers((handler,))
        listen(server, address, credentials)
        await server.start()
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            await server.stop(0)


async def work(scene: Scene, node: Node) -> None:
    await scene.work(node, task(), sources()[node.party])


def error_with(
    run: Run, server: Node, alice: Node, directory: Path, *, answer: Answer
) -> CloisterError:
    """Returns the error a worker ends with."""

    async def story() -> CloisterError:
        scene = make_scene(directory)
        async with odd_server(server, scene, OddTraining(answer)):
            with pytest.raises(CloisterError) as caught:
                await work(scene, alice)
        return caught.value

    return run(story())


def test_a_worker_trains_until_the_server_says_final(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        def answer(call: int) -> list[bytes]:
            if call < 0:
                return [encode_header(Finished())]
            return model(call, final=call == 4)

        scene = make_scene(tmp_path)
        odd = OddTraining(answer)
        async with odd_server(server, scene, odd):
            await work(scene, alice)
        assert [header.round for header in odd.headers] == [1, 2, 3]
        rounds = scene.events("alice", "round")
        assert [line["round"] for line in rounds] == [1, 2, 3]

    run(story())


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda _: [], "model-missing"),
        (lambda _: [b"\xff"], "header-malformed"),
        (lambda _: [encode_header(Finished())], "header-malformed"),
        (lambda _: model(1)[1:], "header-malformed"),
        (lambda _: model(1)[:1], "transfer-short"),
        (lambda _: [*model(1), b"\0"], "chunk-size"),
        (lambda _: [model(1)[0], model(1)[1][:-1]], "transfer-short"),
        (lambda _: model(1, layout="0" * 64), "layout-differs"),
        (lambda call: model(2 * call), "round-order"),
        (lambda _: model(1), "round-order"),
        (lambda call: model(3 - call), "round-order"),
        (lambda call: model(call, final=True), "header-malformed"),
        (lambda _: [bytes(MAX_CHUNK_BYTES + 1)], "server-gone"),
    ],
)
def test_a_server_that_breaks_the_protocol_ends_the_worker_with_its_reason(
    run: Run, nodes: tuple[Node, Node], tmp_path: Path, answer: Answer, code: str
) -> None:
    error = error_with(run, *nodes, tmp_path, answer=answer)
    assert isinstance(error, ProtocolError)
    assert error.code == code


@pytest.fixture
def nodes(server: Node, alice: Node) -> tuple[Node, Node]:
    return server, alice


def test_a_server_that_goes_away_is_named_so(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    def answer(_: int) -> list[bytes]:
        raise RuntimeError("a bug of the server's")

    error = error_with(run, server, alice, tmp_path, answer=answer)
    assert error.code == "server-gone"
    assert "log says why" in error.remedy


def test_a_worker_waits_for_a_server_that_is_not_there_yet_and_says_so_once(
    run: Run, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        scene = replace(make_scene(tmp_path), patience_seconds=0.2)
        with pytest.raises(ProtocolError) as caught:
            await work(scene, alice)
        assert caught.value.code == "server-unreachable"
        assert len(scene.events("alice", "waiting-for-server")) == 1

    run(story())


def test_a_refusal_is_not_waited_out(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    async def story() -> None:
        scene = make_scene(tmp_path)
        stranger = replace(alice, plan_hash=alice.plan_hash[::-1])  # type: ignore[arg-type]
        async with odd_server(server, scene, OddTraining(model)):
            with pytest.raises(RefusedByPeer) as caught:
                await work(scene, stranger)
        assert caught.value.code == "plan-differs"

    run(story())
