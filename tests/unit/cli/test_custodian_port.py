"""A custodian's port that the custodian before it still has."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation
from tests.support.places import custodian_of
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run, until

from cloister.cli.custodian_port import open_port
from cloister.cli.custodians import build_custodian, open_register
from cloister.errors import PlatformError
from cloister.plan.site import Address, parse_address


def test_a_port_that_is_given_up_in_time_is_waited_for(
    run: Run, federation: Federation, tmp_path: Path
) -> None:
    place, log = custodian_of(federation, tmp_path, "alice"), RecordedLog()

    async def serve(address: Address) -> None:
        with open_register(place) as register:
            custodian = build_custodian(place, register, log=log.logger())
            async with open_port(custodian, address, log=log.logger()):
                pass

    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = parse_address(f"127.0.0.1:{taken.getsockname()[1]}")
            serving = asyncio.ensure_future(serve(address))
            await until(lambda: log.named("waiting-for-predecessor") != [])
            assert not serving.done()
        await serving

    run(story())
    assert len(log.named("waiting-for-predecessor")) == 1
    assert len(log.named("custodian-listening")) == 1


def test_a_port_that_can_never_be_opened_is_said(
    run: Run,
    federation: Federation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloister.cli.custodian_port._PREDECESSOR_SECONDS", 0.0)
    place, log = custodian_of(federation, tmp_path, "alice"), RecordedLog().logger()

    async def story() -> None:
        with open_register(place) as register:
            custodian = build_custodian(place, register, log=log)
            # Of nobody on this machine (RFC 5737).
            async with open_port(custodian, parse_address("192.0.2.1:7003"), log=log):
                pytest.fail("it is open")

    with pytest.raises(PlatformError) as caught:
        run(story())
    assert caught.value.code == "port-unusable"
