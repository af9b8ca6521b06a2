"""Clients that begin a handshake and never end it, as many as there are places.

They stay connected all the time. Each place is given back when its time is over, and
whoever is honest gets one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.support.audit import RecordedDoor
from tests.support.custodian_on_disk import (
    ask_for_warrant,
    custodian_on_disk,
    unwarranted,
)
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import Federation
from tests.support.meeting import CERTIFICATE_LIFE
from tests.support.posing import posing_port
from tests.support.raw_http2 import begin_call, open_http2, part_of_message
from tests.support.recorded_log import read_events
from tests.support.running import Run, until

from cloister.cli.journal import open_journal
from cloister.custody.service import METHOD as CUSTODY
from cloister.plan.site import Address
from cloister.ratls.admission import new_authority
from cloister.ratls.admission_table import AdmissionTable
from cloister.ratls.certificate import make_certificate
from cloister.ratls.challenge import Hello, encode_message
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.enrolment_service import METHOD as ENROLMENT
from cloister.ratls.enrolment_service import EnrolmentService
from cloister.ratls.limits import Limits
from cloister.ratls.node import Node

PLACES = 5
# Who reads is a stranger until his time is over; who does not has the server waiting.
SHORT_WITH_STRANGERS = Limits(
    stranger_seconds=0.3, handshake_seconds=20, at_once=PLACES
)
SHORT_ON_THE_WHOLE = Limits(stranger_seconds=20, handshake_seconds=0.6, at_once=PLACES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A port whose places can be counted.

    Attributes:
        address: Where it listens.
        method: What is called there.
        places: How many are taken.
        let_in: Has an honest node come in.
        inside: Who came in, as far as the table or the register on disk knows.
        log_path: Its log on disk.
        timeouts: How its log calls those who took too long.
    """

    address: Address
    method: str
    places: Callable[[], int]
    let_in: Callable[[Node], Awaitable[object]]
    inside: Callable[[], int]
    log_path: Path
    timeouts: str


@asynccontextmanager
async def servers_door(
    federation: Federation, directory: Path, limits: Limits
) -> AsyncIterator[Door]:
    node = federation.node("aggregator")
    table = AdmissionTable(node.clock)
    der = make_certificate(
        node.identity, node.platform, at=node.clock(), life=CERTIFICATE_LIFE
    )
    with open_journal(directory, party=node.party, as_json=False) as log:
        service = EnrolmentService(
            node,
            authority=new_authority(at=node.clock(), life=CERTIFICATE_LIFE),
            table=table,
            audit=RecordedDoor(),
            log=log,
            on_admitted=lambda _: None,
            limits=limits,
        )
        async with posing_port(node.identity, der, service) as address:
            yield Door(
                address=address,
                method=ENROLMENT,
                places=lambda: service._under_way,
                let_in=lambda node: enrol(node, address),
                inside=lambda: len(table.parties()),
                log_path=directory / "logs" / "aggregator.jsonl",
                timeouts="enrolment-timeout",
            )


@asynccontextmanager
async def custodians_door(
    federation: Federation, directory: Path, limits: Limits
) -> AsyncIterator[Door]:
    with custodian_of(federation, "alice", directory / "registers") as custodian:
        async with custodian_on_disk(custodian, directory, limits=limits) as office:
            yield Door(
                address=office.address,
                method=CUSTODY,
                places=office.sessions,
                let_in=lambda node: ask_for_warrant(unwarranted(node), office),
                inside=lambda: len(office.warrants()),
                log_path=office.log_path,
                timeouts="session-timeout",
            )


Slow = Callable[[int, Door, Hello], bytes]


def saying_nothing(number: int, door: Door, _: Hello) -> bytes:
    return begin_call(number, door.method)


def half_a_message(number: int, door: Door, hello: Hello) -> bytes:
    """Its length is told, and so much of it that a byte is missing."""
    raw = encode_message(hello)
    begun = part_of_message(number, raw[:-1], length=len(raw))
    return begin_call(number, door.method) + begun


def saying_hello(number: int, door: Door, hello: Hello) -> bytes:
    call = begin_call(number, door.method)
    return call + part_of_message(number, encode_message(hello))


def hello_and_half_an_answer(number: int, door: Door, hello: Hello) -> bytes:
    begun = part_of_message(number, b"\x83", length=60_000)
    return saying_hello(number, door, hello) + begun


KINDS = (saying_nothing, half_a_message, saying_hello, hello_and_half_an_answer)


@pytest.mark.parametrize(
    ("slow", "reading"), [*((kind, True) for kind in KINDS), (saying_hello, False)]
)
@pytest.mark.parametrize("open_door", [servers_door, custodians_door])
def test_those_who_never_end_hold_no_place_for_long(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    open_door: Callable[..., AbstractAsyncContextManager[Door]],
    slow: Slow,
    reading: bool,  # noqa: FBT001 - a parameter of the story
) -> None:
    # Anybody can know the plan, and say hello in alice's name.
    hello = ClientEnrolment(federation.node("alice")).hello()

    async def story() -> None:
        limits = SHORT_WITH_STRANGERS if reading else SHORT_ON_THE_WHOLE
        async with (
            open_door(federation, tmp_path, limits) as door,
            AsyncExitStack() as held,
        ):
            strangers = []
            for _ in range(PLACES):
                _, writer = await open_http2(door.address, reading=reading)
                held.callback(writer.close)
                writer.write(slow(0, door, hello))
                strangers.append(writer)
            await until(lambda: door.places() == PLACES)
            assert door.inside() == 0
            await until(lambda: door.places() == 0)
            # They are still there; once more on one of their connections.
            strangers[-1].write(slow(1, door, hello))
            await until(lambda: door.places() == 1)
            await door.let_in(federation.node("alice"))
            assert door.inside() == 1
            await until(lambda: door.places() == 0)
        lines = read_events(door.log_path, door.timeouts)
        assert len(lines) == PLACES + 1

    run(story())
