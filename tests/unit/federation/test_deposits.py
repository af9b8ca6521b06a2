"""Marks on their way to a real custodian, and what ends when they do not arrive."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from tests.support.custodians import Custodians, Office
from tests.support.federation_in_memory import Federation
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run, until

from cloister.custody.client import CustodianLine
from cloister.errors import ProtocolError, RefusedByPeer
from cloister.federation import deposits as module
from cloister.federation.deposits import REPEAT_SECONDS, Deposits
from cloister.ratls.mark import Mark

STATE, OTHER = b"\1" * 32, b"\2" * 32
SILENCE = 600.0


def mark(number: int, *, state: bytes = STATE, epoch: int = 1) -> Mark:
    return Mark(round=number, state=state, server_epoch=epoch, server_key=bytes(32))


class Seconds:
    """A counter that goes as it should, and that somebody sets forward."""

    def __init__(self) -> None:
        self.now = 100.0 - time.monotonic()

    def __call__(self) -> float:
        return self.now + time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Alice's deposits, at work, and her custodian."""

    office: Office
    line: CustodianLine
    deposits: Deposits
    seconds: Seconds
    log: RecordedLog
    keeping: asyncio.Future[NoReturn]


@pytest.fixture
def custodians(federation: Federation, tmp_path: Path) -> Custodians:
    return Custodians(federation=federation, directory=tmp_path, plan=federation.plan)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters are looked at, and failures retried, without delay."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)


@asynccontextmanager
async def at_work(
    custodians: Custodians, federation: Federation, *, silence: float = SILENCE
) -> AsyncIterator[Scene]:
    seconds, log = Seconds(), RecordedLog()
    async with (
        custodians.office("alice") as office,
        office.line(federation.node("alice")) as line,
    ):
        deposits = Deposits(
            line, silence_seconds=silence, log=log.logger(), elapsed=seconds
        )
        keeping = asyncio.ensure_future(deposits.keep())
        yield Scene(
            office=office,
            line=line,
            deposits=deposits,
            seconds=seconds,
            log=log,
            keeping=keeping,
        )
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def test_marks_are_deposited_and_the_newest_is_remembered(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            for number in range(5):
                scene.deposits.offer(mark(number))
            await scene.deposits.settled()
            assert scene.line.mark == mark(4)
            assert scene.log.events == []

    run(story())
    assert custodians.mark("alice") == mark(4)


def test_who_waits_for_a_round_waits_for_it_and_not_for_the_newest_head(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            reached = asyncio.ensure_future(scene.deposits.reached(2))
            scene.deposits.offer(mark(1))
            await scene.deposits.settled()
            assert not reached.done()
            scene.deposits.offer(mark(2))
            await reached
            # It may be there already.
            await scene.deposits.reached(1)

    run(story())


def test_who_has_no_mark_waits_for_none(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.seconds.now += 10 * SILENCE
            await scene.deposits.begun()
            await scene.deposits.settled()
            assert not scene.keeping.done()

    run(story())
    assert custodians.mark("alice") is None


def test_a_refused_mark_ends_the_deposits_and_the_register_keeps_the_older(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    custodians.remember("alice", mark(3))

    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.deposits.offer(mark(3, state=OTHER))
            with pytest.raises(RefusedByPeer) as caught:
                await scene.keeping
            assert caught.value.code == "mark-forked"

    run(story())
    assert custodians.mark("alice") == mark(3)


def test_a_custodian_that_was_away_is_told_of_once_and_tried_again(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            await scene.office.shut()
            scene.deposits.offer(mark(0))
            await until(lambda: bool(scene.log.named("deposit-failed")))
            settling = asyncio.ensure_future(scene.deposits.settled())
            scene.deposits.offer(mark(1))
            await scene.office.open()
            await settling
            assert scene.line.mark == mark(1)
            assert [e["round"] for e in scene.log.named("deposit-failed")] == [0]

    run(story())
    assert custodians.mark("alice") == mark(1)


def test_a_later_head_is_deposited_with_the_newest_mark_and_once_for_many(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.deposits.follow(b"\5" * 32)  # of no mark yet
            await scene.deposits.settled()
            scene.deposits.offer(mark(3))
            await scene.deposits.settled()
            for number in range(1, 8):
                scene.deposits.follow(bytes([number]) * 32)
            await scene.deposits.settled()
            assert scene.log.events == []
            scene.deposits._made.clear()
            scene.deposits.follow(b"\7" * 32)
            assert not scene.deposits._due.is_set()

    run(story())
    known = custodians.mark("alice")
    assert known == msgspec.structs.replace(mark(3), audit_head=b"\7" * 32)


def test_nothing_is_begun_for_a_server_that_the_custodian_does_not_know(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.deposits.offer(mark(0))
            await scene.deposits.begun()
            await scene.office.shut()
            await scene.deposits.begun()
            scene.deposits.offer(mark(1))  # of the same server
            await scene.deposits.begun()
            scene.deposits.offer(mark(1, epoch=2))
            beginning = asyncio.ensure_future(scene.deposits.begun())
            await until(lambda: bool(scene.log.named("deposit-failed")))
            assert not beginning.done()
            await scene.office.open()
            await beginning

    run(story())
    assert custodians.mark("alice") == mark(1, epoch=2)


def test_a_node_without_a_new_mark_deposits_its_newest_again(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    """So it is heard however long it waits; and it hears when its place is taken."""

    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.deposits.offer(mark(0))
            await scene.deposits.settled()
            began = scene.seconds()
            for _ in range(12):
                scene.deposits._made.clear()
                scene.seconds.now += REPEAT_SECONDS
                await scene.deposits._made.wait()
            assert scene.seconds() > began + SILENCE
            async with scene.office.line(federation.node("alice")):
                scene.seconds.now += REPEAT_SECONDS
                with pytest.raises(RefusedByPeer) as caught:
                    await scene.keeping
            assert caught.value.code == "warrant-superseded"

    run(story())
    assert custodians.mark("alice") == mark(0)


def test_a_node_ends_when_its_custodian_is_silent_for_too_long(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.deposits.offer(mark(0))
            await scene.deposits.settled()
            await scene.office.shut()
            scene.seconds.now += SILENCE - 60
            await until(lambda: bool(scene.log.named("deposit-failed")))
            # A newer mark is news for nobody.
            scene.deposits.offer(mark(7))
            assert not scene.keeping.done()
            scene.seconds.now += 60
            with pytest.raises(ProtocolError) as caught:
                await scene.keeping
            assert caught.value.code == "custodian-silent"
            assert "600 s" in caught.value.expected
            assert caught.value.got == "custodian-unreachable"
            assert "custodian_silence_seconds" in caught.value.remedy

    run(story())
    assert custodians.mark("alice") == mark(0)


def test_a_machine_that_slept_all_the_while_has_one_more_try(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        async with at_work(custodians, federation) as scene:
            scene.deposits.offer(mark(0))
            await scene.deposits.settled()
            scene.deposits._made.clear()
            scene.seconds.now += 2 * SILENCE
            await scene.deposits._made.wait()
            assert not scene.keeping.done()

    run(story())


def test_a_custodian_that_never_answers_stretches_nothing(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    federation: Federation,
    custodians: Custodians,
) -> None:
    monkeypatch.setattr(module, "LAST_TRY_SECONDS", 0.01)

    async def story() -> None:
        async with at_work(custodians, federation, silence=0.05) as scene:
            await scene.office.shut()
            address = scene.office.address
            # It takes connections, and never says a word.
            with socket.create_server((address.host, address.port)):
                scene.deposits.offer(mark(9))
                with pytest.raises(ProtocolError) as caught:
                    await scene.keeping
            assert caught.value.code == "custodian-silent"

    run(story())
    assert custodians.mark("alice") is None
