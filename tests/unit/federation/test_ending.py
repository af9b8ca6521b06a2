from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.support.custodians import Custodians
from tests.support.federation_in_memory import Federation
from tests.support.recorded_log import RecordedLog
from tests.support.run_audit import RecordedRounds, participant
from tests.support.running import Run

from cloister.errors import CloisterError, ProtocolError
from cloister.federation import ending
from cloister.federation.ending import deposit_last_head
from cloister.federation.messages import ModelHeader
from cloister.federation.published import Ending
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node

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
