"""Somebody sits between a node and its party's custodian."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.custodian_port import custodian_line
from tests.support.custodians import Custodians
from tests.support.federation_in_memory import START, Federation
from tests.support.posing import custodian_certificate
from tests.support.relay import (
    always,
    first,
    relay,
    tls_as,
    tls_without_its_key,
)
from tests.support.running import Run, until
from tests.support.unwarranted import code_at, epochs_of, goes_on, unwarranted

from cloister.custody.service import METHOD
from cloister.plan.plan import plan_hash
from cloister.ratls.identity import new_identity
from cloister.ratls.insecure_fetch import fetch_unverified_certificate
from cloister.ratls.mark import Mark

MARK = Mark(round=3, state=b"s" * 32, server_epoch=1, server_key=b"k" * 32)


@pytest.fixture
def custodians(federation: Federation, tmp_path: Path) -> Custodians:
    return Custodians(
        federation=federation, directory=tmp_path / "custody", plan=federation.plan
    )


def test_a_relay_that_passes_on_bytes_reads_none_of_them(
    run: Run, federation: Federation, custodians: Custodians
) -> None:
    async def story() -> None:
        node, counting = unwarranted(federation, "alice")
        async with (
            custodians.office("alice") as office,
            relay(always(office.address)) as between,
            custodian_line(node, between.address) as line,
        ):
            await line.renew()
            await line.deposit(MARK)
            warrant = node.warrant.current
            for secret in (
                METHOD.encode(),
                b"alice",
                federation.plan.run_id.encode(),
                plan_hash(federation.plan),
                node.identity.tls_spki,
                warrant.signature,
                MARK.state,
            ):
                assert secret not in between.heard
        assert counting.quotes == 1
        assert epochs_of(custodians, "alice") == [1]
        assert custodians.mark("alice") == MARK

    run(story())


def test_a_relay_with_a_certificate_that_a_stranger_signed_hears_nothing(
    run: Run, federation: Federation, custodians: Custodians, tmp_path: Path
) -> None:
    async def story() -> None:
        node, counting = unwarranted(federation, "alice")
        identity, stranger = new_identity(), Ed25519PrivateKey.generate()
        forged = custodian_certificate(identity, "alice", stranger, at=START)
        async with custodians.office("alice") as office:
            shown = tls_as(identity, forged, tmp_path)
            async with relay(always(office.address), shown=shown) as between:
                code = await code_at(node, between.address)
                # It had a connection, and not a word was said on it.
                await until(lambda: len(between.passages) == 1)
            assert code == "custodian-certificate-signature"
            assert between.heard == b""
            assert counting.quotes == 0
            assert epochs_of(custodians, "alice") == []
            await goes_on(office, federation)

    run(story())


def test_a_relay_with_the_custodians_certificate_and_another_key_hears_nothing(
    run: Run, federation: Federation, custodians: Custodians, tmp_path: Path
) -> None:
    """Also where it was honest while the certificate was read."""

    async def story() -> None:
        async with custodians.office("alice") as office:
            genuine = await fetch_unverified_certificate(office.address)
            shown = tls_without_its_key(genuine, tmp_path)
            async with (
                relay(always(office.address), shown=shown) as keyless,
                relay(first(office.address, then=keyless.address)) as between,
            ):
                for address, wanted in (
                    (keyless.address, "custodian-unreachable"),
                    (between.address, "enrolment-broken"),
                ):
                    node, counting = unwarranted(federation, "alice")
                    assert await code_at(node, address) == wanted
                    assert counting.quotes == 0
                assert keyless.heard == b""
            assert office.log.named("node-refused") == []
            assert epochs_of(custodians, "alice") == []
            await goes_on(office, federation)

    run(story())
