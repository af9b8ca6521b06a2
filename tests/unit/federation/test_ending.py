from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.custodians import Custodians
from tests.support.federation_in_memory import Federation
from tests.support.made_audit import AuditedRun
from tests.support.recorded_log import RecordedLog
from tests.support.run_audit import RecordedRounds, participant
from tests.support.running import Run

from cloister.errors import (
    CloisterError,
    ConfigError,
    ProtocolError,
    StorageError,
    VerificationError,
)
from cloister.federation import ending
from cloister.federation.audit_records import RunFailed
from cloister.federation.ending import deposit_last_head, end_early
from cloister.federation.messages import ModelHeader
from cloister.federation.published import Ending
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.storage.mirror.subject import Kept

END = Ending(
    model=ModelHeader(
        round=13,
        layout=64 * "0",
        evaluate=False,
        final=True,
        audit_head=b"\1" * 32,
        state=b"\2" * 32,
    ),
    reports=(participant("alice"),),
)


class Silent:
    """A custodian that takes a deposit and never answers, or answers with an error."""

    mark = None

    def __init__(self, error: CloisterError | None = None) -> None:
        self.error = error
        self.asked: list[Mark] = []

    async def renew(self) -> None:
        raise NotImplementedError

    async def deposit(self, mark: Mark) -> None:
        self.asked.append(mark)
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


def test_the_party_keeps_the_last_head(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    custodians = Custodians(
        federation=federation, directory=tmp_path, plan=federation.plan
    )
    log = RecordedLog()
    audit = RecordedRounds()

    async def story() -> None:
        node = federation.node("aggregator")
        async with (
            custodians.office("aggregator") as office,
            office.line(node) as line,
        ):
            await deposit_last_head(
                node, line, ending=END, audit=audit, log=log.logger()
            )

    run(story())
    mark = custodians.mark("aggregator")
    assert mark is not None
    assert (mark.round, mark.state) == (12, END.model.state)
    assert mark.audit_head == audit.head != END.model.audit_head
    assert log.events == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "custodian-silent"),
        (
            ProtocolError("nobody", code="custodian-unreachable"),
            "custodian-unreachable",
        ),
    ],
)
def test_a_custodian_that_does_not_answer_does_not_undo_the_run(
    run: Run,
    server: Node,
    monkeypatch: pytest.MonkeyPatch,
    error: CloisterError | None,
    code: str,
) -> None:
    monkeypatch.setattr(ending, "_LAST_DEPOSIT_SECONDS", 0.01)
    log, silent = RecordedLog(), Silent(error)
    run(
        deposit_last_head(
            server, silent, ending=END, audit=RecordedRounds(), log=log.logger()
        )
    )
    [line] = log.events
    assert (line["event"], line["level"]) == ("audit-head-not-deposited", "warning")
    assert line["code"] == code
    assert len(silent.asked) == 1


def test_training_that_states_no_state_has_no_end(run: Run, server: Node) -> None:
    stateless = Ending(
        model=msgspec.structs.replace(END.model, state=None), reports=END.reports
    )
    with pytest.raises(RuntimeError):
        run(
            deposit_last_head(
                server,
                Silent(),
                ending=stateless,
                audit=RecordedRounds(),
                log=RecordedLog().logger(),
            )
        )


class Rested:
    """A run that has failed; its newest state is durable, unless a save failed."""

    def __init__(self, kept: Kept | Exception) -> None:
        self.kept = kept

    async def rest(self) -> Kept:
        if isinstance(self.kept, Exception):
            raise self.kept
        return self.kept


STOPPED = ProtocolError("the server was stopped", code="server-stopped")


def kept(number: int) -> Kept:
    return Kept(round=number, counters={}, digest=b"\3" * 32, slot=0)


@pytest.fixture
def story(federation: Federation, tmp_path: Path) -> Iterator[AuditedRun]:
    """A run of which one round is recorded, and its state is not stated."""
    made = AuditedRun(federation, tmp_path / "audit.jsonl")
    made.begin()
    made.admit_all()
    sent = made.publish()
    made.log.round_completed(
        1, head=sent.head, participants=made.participants(sent), state=None
    )
    yield made
    made.log.close()


def ended(
    run: Run,
    story: AuditedRun,
    custodian: Silent,
    *,
    newest: Kept | Exception,
    error: CloisterError = STOPPED,
) -> RecordedLog:
    """Ends the run early; returns what is logged."""
    log = RecordedLog()
    run(
        end_early(
            story.server,
            Rested(newest),
            error,
            custodian=custodian,
            audit=story.log,
            log=log.logger(),
        )
    )
    return log


def test_the_party_knows_the_newest_state_of_a_run_that_ends_early(
    run: Run, story: AuditedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_EARLY_DEPOSIT_SECONDS", 0.01)
    custodian = Silent()
    log = ended(run, story, custodian, newest=kept(1))
    failed = story.entries()[-1]
    assert failed == RunFailed(
        code="server-stopped", reason=str(STOPPED), state=kept(1).digest.hex()
    )
    [mark] = custodian.asked
    assert (mark.round, mark.state) == (1, kept(1).digest)
    assert mark.audit_head == story.log.head
    # It is waited for, and not for long.
    assert [line["event"] for line in log.events] == ["audit-head-not-deposited"]


def test_a_server_whose_own_plan_refuses_it_tells_its_party_how_far_it_came(
    run: Run, story: AuditedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the plan could not be amended after a recovery of its platform."""
    monkeypatch.setattr(ending, "_EARLY_DEPOSIT_SECONDS", 0.01)
    custodian = Silent()
    refused = VerificationError("out of date", code="appraisal-tcb-status")
    ended(run, story, custodian, newest=kept(1), error=refused)
    [mark] = custodian.asked
    assert (mark.round, mark.state) == (1, kept(1).digest)


@pytest.mark.parametrize(
    ("newest", "error", "state"),
    [
        (kept(0), STOPPED, None),  # the log is ahead
        # It could not be kept.
        (StorageError("no room", code="mirror-unwritable"), STOPPED, None),
        (ConfigError("none", code="mirror-arrays"), STOPPED, None),
        (MemoryError(), STOPPED, None),
        (
            kept(1),
            VerificationError("replaced", code="server-epoch-old"),
            kept(1).digest,
        ),
        (kept(1), ProtocolError("silent", code="custodian-silent"), kept(1).digest),
    ],
)
def test_a_state_that_is_not_durable_or_a_party_that_will_not_hear_is_left_alone(
    run: Run,
    story: AuditedRun,
    newest: Kept | Exception,
    error: CloisterError,
    state: bytes | None,
) -> None:
    custodian = Silent()
    log = ended(run, story, custodian, newest=newest, error=error)
    failed = story.entries()[-1]
    assert isinstance(failed, RunFailed)
    assert (failed.code, failed.state) == (error.code, state.hex() if state else None)
    assert custodian.asked == []
    assert [line["event"] for line in log.events] == (
        [] if isinstance(newest, Kept) else ["state-not-kept"]
    )
