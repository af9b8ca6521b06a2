"""A server with both ports open, whose table, log and files can be looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from examples.softmax.task import Softmax
from tests.support.addresses import free_addresses
from tests.support.kept_in_memory import KeptInMemory, KnownAtOnce
from tests.support.plan_tree import CLASSES, FEATURES
from tests.support.recorded_log import Event, read_events
from tests.support.run_audit import RecordedRun

from cloister.cli.journal import open_journal
from cloister.errors import ProtocolError
from cloister.federation.coordinator import Coordinator
from cloister.federation.course import course_of
from cloister.federation.model_state import ModelState
from cloister.federation.ports import Ports
from cloister.federation.publisher import ARITHMETIC_THREADS
from cloister.federation.rounds.machine import Phase
from cloister.plan.site import Address
from cloister.ratls.channels import MAX_CHUNK_BYTES, ClientTls, open_channel
from cloister.ratls.enrolling import Enrolled, enrol
from cloister.ratls.node import Node
from cloister.ratls.refusals import decode_status


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenServer:
    """What a test sees of a running server.

    Attributes:
        node: Its node.
        coordinator: Its rounds.
        ports: Its ports.
        audit: What it recorded.
        enrolment: Where it enrols.
        training: Where it trains.
        directory: Its run directory.
    """

    node: Node
    coordinator: Coordinator
    ports: Ports
    audit: RecordedRun
    enrolment: Address
    training: Address
    directory: Path

    def admitted(self) -> list[tuple[str, int]]:
        """Returns party and epoch of everybody in the admission table."""
        return [(peer.party, peer.epoch) for peer in self.ports.table.parties()]

    def events(self, name: str) -> list[Event]:
        """Returns the lines of one kind in its log on disk."""
        return read_events(self.directory / "logs" / "aggregator.jsonl", name)

    def refusals(self) -> list[object]:
        """Returns the code of every refusal in its log on disk."""
        names = ("peer-refused", "refused-by-peer", "call-refused")
        return [event["code"] for name in names for event in self.events(name)]

    def files(self) -> list[str]:
        """Returns every file of its run directory."""
        return sorted(
            str(path.relative_to(self.directory))
            for path in self.directory.rglob("*")
            if path.is_file()
        )


@asynccontextmanager
async def open_server(
    node: Node, directory: Path, *, features: int = FEATURES
) -> AsyncIterator[OpenServer]:
    """Opens both ports of a server that waits for its workers."""
    enrolment, training = free_addresses(2)
    model = Softmax(features, CLASSES).initial_model(seed=node.plan.training.seed)
    with (
        open_journal(directory, party=node.party, as_json=False) as log,
        ThreadPoolExecutor(ARITHMETIC_THREADS) as threads,
    ):
        audit = RecordedRun()
        course = course_of(node.plan)
        state = ModelState(model, course.optimizer)
        coordinator = Coordinator(
            course,
            state,
            keeper=KeptInMemory(state),
            witness=KnownAtOnce(),
            audit=audit,
            threads=threads,
            log=log,
        )
        ports = Ports(
            node,
            coordinator,
            enrolment=enrolment,
            training=training,
            audit=audit,
            log=log,
        )
        async with ports:
            yield OpenServer(
                node=node,
                coordinator=coordinator,
                ports=ports,
                audit=audit,
                enrolment=enrolment,
                training=training,
                directory=directory,
            )
            # Calls still waiting for a round end now, and not after a grace period.
            await coordinator.fail(ProtocolError("the story is over", code="over"))


def jump_to(server: OpenServer, number: int) -> None:
    """Has the model of a later round go out, as if those between had been trained."""
    coordinator = server.coordinator
    machine, last = coordinator._machine, server.node.plan.training.rounds
    machine._round = number
    machine._done.clear()
    if number > last:
        machine._phase = Phase.REPORTING
        machine._seated.clear()
    publisher = coordinator._publisher
    coordinator._publish(publisher._published(number, None, final=number > last))


@asynccontextmanager
async def admitted_channel(
    server: OpenServer, node: Node, *, enrolled: Enrolled | None = None
) -> AsyncIterator[grpc.aio.Channel]:
    """Enrols `node`, unless it is enrolled; opens its channel on the training port."""
    enrolled = enrolled or await enrol(node, server.enrolment)
    channel = open_channel(
        server.training,
        pinned_certificate=enrolled.server_certificate,
        max_message_bytes=MAX_CHUNK_BYTES,
        client=ClientTls(
            identity=node.identity,
            admission_certificate=enrolled.admittance.certificate,
        ),
    )
    async with channel:
        yield channel


def refusal_code(error: grpc.aio.AioRpcError) -> str:
    """Returns the code in the refusal that ended a call."""
    return decode_status(error.details()).code
