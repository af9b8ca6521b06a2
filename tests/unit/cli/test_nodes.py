"""A node's line to its custodian, over a real port."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.custodians import Custodians
from tests.support.federation_in_memory import Federation, HandClock
from tests.support.places import place_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run

from cloister.cli.nodes import open_line
from cloister.ratls.warrant import HeldWarrant


@pytest.mark.parametrize(("minutes", "warnings"), [(0, 0), (9, 0), (11, 1), (19, 1)])
def test_a_host_whose_clock_is_behind_is_told_so(
    federation: Federation, tmp_path: Path, run: Run, minutes: int, warnings: int
) -> None:
    custodians = Custodians(
        federation=federation, directory=tmp_path, plan=federation.plan
    )
    host = HandClock()
    host.forward(-timedelta(minutes=minutes))
    log = RecordedLog()
    node = replace(federation.node("alice", clock=host), warrant=HeldWarrant())

    async def meet() -> None:
        async with custodians.office("alice") as office:
            place = place_of(federation.plan, tmp_path, custodian=str(office.address))
            line = await open_line(node, place, log=log.logger())
            await line.close()

    run(meet())
    assert node.warrant.current.terms.epoch == 1
    told = log.named("clock-behind")
    assert [it["seconds"] for it in told] == [minutes * 60] * warnings
