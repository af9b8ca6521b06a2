from __future__ import annotations

import asyncio
import ssl

import pytest
from tests.support.addresses import free_addresses
from tests.support.custodian_port import custodian_port
from tests.support.federation_in_memory import START
from tests.support.running import Run

from cloister.custody.certificate import verify_custodian_certificate
from cloister.custody.custodian import Custodian
from cloister.custody.serving import CERTIFICATE_LIFE
from cloister.errors import PlatformError, ProtocolError
from cloister.ratls.insecure_fetch import (
    fetch_unverified_certificate,
    open_unverified,
)


def test_a_port_shows_the_certificate_of_its_partys_custodian(
    run: Run, custodian: Custodian
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            der = await fetch_unverified_certificate(office.address)
            for at in (START, START + CERTIFICATE_LIFE):
                verify_custodian_certificate(
                    der, party="alice", party_key=custodian.key.public_key(), at=at
                )
            [line] = office.log.events
            assert (line["event"], line["address"]) == (
                "custodian-listening",
                str(office.address),
            )

    run(story())


def test_every_start_has_a_tls_key_of_its_own(run: Run, custodian: Custodian) -> None:
    async def story() -> None:
        shown = []
        for _ in range(2):
            async with custodian_port(custodian) as office:
                shown.append(await fetch_unverified_certificate(office.address))
        assert shown[0] != shown[1]

    run(story())


def test_a_custodian_speaks_tls_1_3_alone(run: Run, custodian: Custodian) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await open_unverified(office.address, newest=ssl.TLSVersion.TLSv1_2)

    run(story())


def test_a_port_in_use_is_refused_by_its_address(
    run: Run, custodian: Custodian
) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            with pytest.raises(PlatformError, match=str(office.address)) as caught:
                async with custodian_port(custodian, address=office.address):
                    pytest.fail("two custodians at one address")
            assert caught.value.code == "port-unusable"

    run(story())


def test_a_port_that_was_left_is_closed(run: Run, custodian: Custodian) -> None:
    async def story() -> None:
        async with custodian_port(custodian) as office:
            pass
        with pytest.raises(ProtocolError):
            await fetch_unverified_certificate(office.address)

    run(story())


def test_a_start_that_is_cancelled_leaves_no_port_open(
    run: Run, custodian: Custodian
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)

        async def serve() -> None:
            async with custodian_port(custodian, address=address):
                pytest.fail("it was cancelled before")

        starting = asyncio.ensure_future(serve())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        with pytest.raises(ProtocolError):
            await fetch_unverified_certificate(address)

    run(story())
