"""An enrolment port alone, over a real socket, whose table and log can be looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from tests.support.addresses import free_addresses
from tests.support.audit import RecordedDoor
from tests.support.meeting import CERTIFICATE_LIFE
from tests.support.recorded_log import RecordedLog

from cloister.plan.site import Address
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable, Peer
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import MAX_MESSAGE_BYTES
from cloister.ratls.channels import (
    enrolment_credentials,
    listen,
    open_channel,
    stranger_options,
)
from cloister.ratls.enrolment_service import METHOD, EnrolmentService
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.limits import USUAL_LIMITS, Limits
from cloister.ratls.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentPort:
    """What a test sees of a server that enrols.

    Attributes:
        address: Where it listens.
        table: Whom it admitted.
        service: What listens.
        door: What it recorded.
        log: What it said.
        told: Whom it told the rest of the server of.
    """

    address: Address
    table: AdmissionTable
    service: EnrolmentService
    door: RecordedDoor
    log: RecordedLog
    told: list[Peer]

    def places(self) -> int:
        """Returns how many enrolments are under way."""
        return self.service._under_way

    def admitted(self) -> list[tuple[str, int]]:
        """Returns party and epoch of everybody in the table."""
        return [(peer.party, peer.epoch) for peer in self.table.parties()]

    def refusals(self) -> list[object]:
        """Returns the code of every refusal, given or heard."""
        names = ("peer-refused", "refused-by-peer")
        return [event["code"] for name in names for event in self.log.named(name)]


@asynccontextmanager
async def enrolment_port(
    node: Node, *, limits: Limits = USUAL_LIMITS, door: RecordedDoor | None = None
) -> AsyncIterator[EnrolmentPort]:
    """Opens the enrolment port of a server's node."""
    [address] = free_addresses(1)
    door = door or RecordedDoor()
    table, log, told = AdmissionTable(node.clock), RecordedLog(), list[Peer]()
    service = EnrolmentService(
        node,
        authority=new_authority(at=node.clock(), life=CERTIFICATE_LIFE),
        table=table,
        audit=door,
        log=log.logger(),
        on_admitted=told.append,
        limits=limits,
    )
    certificate = make_certificate(
        node.identity, node.platform, at=node.clock(), life=CERTIFICATE_LIFE
    )
    server = grpc.aio.server(options=stranger_options(MAX_MESSAGE_BYTES))
    server.add_generic_rpc_handlers((service,))
    listen(server, address, enrolment_credentials(node.identity, certificate))
    await server.start()
    try:
        yield EnrolmentPort(
            address=address,
            table=table,
            service=service,
            door=door,
            log=log,
            told=told,
        )
    finally:
        await server.stop(0)
        service.close()


@asynccontextmanager
async def raw_channel(address: Address) -> AsyncIterator[grpc.aio.Channel]:
    """Opens a channel as anybody can who believes the server's certificate."""
    channel = open_channel(
        address,
        pinned_certificate=await fetch_unverified_certificate(address),
        max_message_bytes=4 * MAX_MESSAGE_BYTES,
    )
    async with channel:
        yield channel


@asynccontextmanager
async def raw_call(address: Address, method: str = METHOD) -> AsyncIterator[Call]:
    """Begins a call whose messages the test writes and reads itself."""
    async with raw_channel(address) as channel:
        yield channel.stream_stream(method)()
