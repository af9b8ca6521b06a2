"""Whatever strangers do to the ports, another party's enrolment goes through."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from tests.support.open_server import OpenServer, open_server
from tests.support.running import Run

from cloister.plan.site import Address
from cloister.ratls.challenge import MAX_MESSAGE_BYTES, encode_message
from cloister.ratls.channels import open_channel
from cloister.ratls.client_enrolment import ClientEnrolment
from cloister.ratls.enrolling import enrol
from cloister.ratls.enrolment_service import METHOD
from cloister.ratls.exchange import Call
from cloister.ratls.insecure_fetch import (
    fetch_unverified_certificate,
    open_unverified,
)
from cloister.ratls.node import Node

Noise: TypeAlias = Callable[[OpenServer], AbstractAsyncContextManager[None]]
GARBAGE = np.random.default_rng(7).bytes(64 * 1024)


def each(port: OpenServer) -> tuple[Address, Address]:
    return port.enrolment, port.training


@asynccontextmanager
async def raw_bytes(port: OpenServer) -> AsyncIterator[None]:
    writers = []
    for address in each(port):
        for noise in (GARBAGE, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff"):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(noise)
            writers.append(writer)
    yield
    for writer in writers:
        writer.close()


@asynccontextmanager
async def silent_connections(port: OpenServer) -> AsyncIterator[None]:
    writers = []
    for address in each(port):
        for _ in range(20):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writers.append(writer)
    yield
    for writer in writers:
        writer.close()


@asynccontextmanager
async def silence_after_tls(port: OpenServer) -> AsyncIterator[None]:
    writers = [
        await open_unverified(address, newest=ssl.TLSVersion.TLSv1_3)
        for address in 5 * each(port)
    ]
    yield
    for writer in writers:
        writer.close()


@asynccontextmanager
async def garbage_after_tls(port: OpenServer) -> AsyncIterator[None]:
    writers = []
    for address in each(port):
        writer = await open_unverified(address, newest=ssl.TLSVersion.TLSv1_3)
        writer.write(GARBAGE)
        writers.append(writer)
    yield
    for writer in writers:
        writer.close()


@asynccontextmanager
async def enrolment_calls(
    port: OpenServer, messages: list[bytes], *, count: int
) -> AsyncIterator[None]:
    """Begins so many enrolments and stops in the middle of each."""
    channel = open_channel(
        port.enrolment,
        pinned_certificate=await fetch_unverified_certificate(port.enrolment),
        max_message_bytes=16 * MAX_MESSAGE_BYTES,
    )
    async with channel:
        calls: list[Call] = [channel.stream_stream(METHOD)() for _ in range(count)]
        for call in calls:
            for message in messages:
                await call.write(message)
        yield


@asynccontextmanager
async def half_open_enrolments(port: OpenServer) -> AsyncIterator[None]:
    async with enrolment_calls(port, [], count=20):
        yield


@asynccontextmanager
async def oversized_messages(port: OpenServer) -> AsyncIterator[None]:
    async with enrolment_calls(port, [bytes(8 * MAX_MESSAGE_BYTES)], count=5):
        yield


@asynccontextmanager
async def malformed_messages(port: OpenServer) -> AsyncIterator[None]:
    async with enrolment_calls(port, [b"\x81\xa7message\xa1\xff"], count=5):
        yield


@pytest.mark.parametrize(
    "noise",
    [
        raw_bytes,
        silent_connections,
        silence_after_tls,
        garbage_after_tls,
        half_open_enrolments,
        oversized_messages,
        malformed_messages,
    ],
)
def test_noise_disturbs_no_enrolment(
    run: Run, server: Node, alice: Node, bob: Node, tmp_path: Path, noise: Noise
) -> None:
    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            await enrol(alice, port.enrolment)
            async with noise(port):
                await enrol(bob, port.enrolment)
            assert port.admitted() == [("alice", 1), ("bob", 1)]
            assert len(port.events("peer-admitted")) == 2
            assert port.coordinator.traffic.sent == 0
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


def test_hellos_in_anothers_name_do_not_use_up_that_name(
    run: Run, server: Node, alice: Node, tmp_path: Path
) -> None:
    """Anybody may say hello as alice; only her key can go on."""

    async def story() -> None:
        hello = encode_message(ClientEnrolment(alice).hello())
        async with (
            open_server(server, tmp_path) as port,
            enrolment_calls(port, [hello], count=20),
        ):
            await enrol(alice, port.enrolment)
            assert port.admitted() == [("alice", 1)]
            assert port.refusals() == []

    run(story())
