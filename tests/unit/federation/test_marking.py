"""What a server has its party's custodian remember, with heads that are on its disk."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.federation_in_memory import Federation
from tests.support.made_audit import AuditedRun, state_after
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.errors import ProtocolError
from cloister.federation.deposits import Deposits
from cloister.federation.marking import ServerMarks
from cloister.federation.messages import ModelHeader
from cloister.ratls.admission_table import Peer
from cloister.ratls.identity import Spki
from cloister.ratls.mark import Mark
from cloister.ratls.proofs import Identified
from cloister.storage.mirror.subject import Kept

HEAD = b"\7" * 32
STOPPED = ProtocolError("the server was stopped", code="server-stopped")


class Heard:
    """A custodian that takes every mark."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []

    @property
    def mark(self) -> Mark | None:
        return self.marks[-1] if self.marks else None

    async def renew(self) -> None:
        raise NotImplementedError

    async def deposit(self, mark: Mark) -> None:
        self.marks.append(mark)


def peer() -> Peer:
    return Peer(
        role="worker",
        party="alice",
        epoch=1,
        tls_key=Spki(b"tls"),
        encryption_key=bytes(32),
        standing=Identified(party_key="ed25519:..."),
    )


def kept(number: int) -> Kept:
    return Kept(round=number, counters={}, digest=state_after(number), slot=0)


def header(number: int, *, head: bytes, state: bytes | None) -> ModelHeader:
    return ModelHeader(
        round=number,
        layout=64 * "0",
        evaluate=False,
        final=False,
        audit_head=head,
        state=state,
    )


@pytest.fixture
def story(federation: Federation, tmp_path: Path) -> Iterator[AuditedRun]:
    made = AuditedRun(federation, tmp_path / "audit.jsonl")
    made.begin()
    made.admit_all()
    yield made
    made.log.close()


def marks_of(story: AuditedRun) -> tuple[ServerMarks, Deposits, Heard]:
    heard = Heard()
    deposits = Deposits(heard, silence_seconds=60.0, log=RecordedLog().logger())
    return ServerMarks(story.server, deposits, audit=story.log), deposits, heard


def test_a_party_that_was_told_of_a_state_knows_it_and_the_record_of_it(
    run: Run, story: AuditedRun
) -> None:
    async def go() -> None:
        marks, deposits, heard = marks_of(story)
        keeping = asyncio.ensure_future(deposits.keep())
        sent = story.publish()
        story.complete(sent)
        await marks.told(kept(1))
        [mark] = heard.marks
        assert (mark.round, mark.state) == (1, state_after(1))
        assert mark.audit_head == story.log.head
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

    run(go())


def test_no_head_goes_into_a_mark_that_a_power_cut_may_take(story: AuditedRun) -> None:
    """The round was recorded after the refusal that is to be told; it comes later."""
    marks, deposits, _ = marks_of(story)
    marks.offer(kept(0))
    sent = story.publish()
    story.log.call_refused(peer(), STOPPED)
    durable = story.log.head
    story.log.round_completed(1, head=sent.head, participants=(), state=None)
    marks.follow()
    newest = deposits._newest
    assert newest is not None
    assert newest.audit_head == durable != story.log.head
    story.log.sync()
    marks.follow()
    assert deposits._newest == replace(newest, audit_head=story.log.head)


def test_a_head_never_goes_with_the_mark_of_a_state_before(story: AuditedRun) -> None:
    """The round is recorded with its state, and that is not durable yet."""
    marks, deposits, _ = marks_of(story)
    marks.offer(kept(0))
    before = deposits._newest
    story.complete(story.publish())
    marks.follow()
    assert deposits._newest == before
    marks.offer(kept(1))
    story.log.call_refused(peer(), STOPPED)
    marks.follow()
    newest = deposits._newest
    assert newest is not None
    assert (newest.round, newest.audit_head) == (1, story.log.head)


def test_a_model_that_says_no_state_is_no_mark(story: AuditedRun) -> None:
    marks, deposits, _ = marks_of(story)
    marks.publish(header(1, head=HEAD, state=state_after(0)))
    marks.publish(header(2, head=bytes(32), state=None))
    newest = deposits._newest
    assert newest is not None
    assert (newest.round, newest.state, newest.audit_head) == (0, state_after(0), HEAD)
