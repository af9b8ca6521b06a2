"""Somebody stands in the place of the custodian that holds the other share.

The host writes the site file, so it leads the node where it likes. Ports, registers,
keyrings and logs are real.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.federation_in_memory import START
from tests.support.posing import custodian_certificate, posing_port
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run
from tests.support.started_worker import SHARE, start_of

from cloister.custody.service import CustodyService
from cloister.errors import CloisterError
from cloister.plan.plan import plan_hash
from cloister.ratls.identity import new_identity
from cloister.storage.keys import key_id, new_key


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Alice and the server's party hold shares of every node's state key."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


@pytest.mark.parametrize("has", ["its own key", "alice's key", "the TLS key"])
def test_a_stranger_poses_as_the_custodian_with_the_share(
    run: Run, keyed: KeyedFederation, tmp_path: Path, has: str
) -> None:
    """The host leads the node to it. It sees no evidence, and makes no state key."""

    async def story() -> None:
        mine, keys = Ed25519PrivateKey.generate(), keyed.federation.keys
        signer = {"its own key": mine, "alice's key": keys["alice"]}.get(
            has, keys["aggregator"]
        )
        identity, log = new_identity(), RecordedLog()
        certificate = custodian_certificate(identity, "aggregator", signer, at=START)
        async with start_of(keyed, tmp_path) as start:
            posing = CustodyService(
                replace(start.other.custodian, key=mine),
                tls_key=identity.tls_spki,
                log=log.logger(),
            )
            async with posing_port(identity, certificate, posing) as address:
                error = await start.fails(address)
            stolen = has == "the TLS key"
            assert error.code == (
                "custodian-signature" if stolen else "custodian-certificate-signature"
            )
            assert "'aggregator'" in str(error)
            # One quote, for its own custodian; none for the stranger.
            assert start.quotes.quotes == 1
            assert start.other.custodian.register.foreign_warrants() == ()
            assert len(log.events) == (1 if stolen else 0)

    run(story())


def test_a_share_address_is_the_nodes_own_custodian(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """The site file says that alice's own custodian holds both shares."""

    async def story() -> None:
        async with start_of(keyed, tmp_path) as start:
            error = await start.fails(start.own.address)
            assert error.code == "custodian-certificate-signature"
            assert "'aggregator'" in str(error)
            assert start.own.refusals() == []

    run(story())


def test_the_host_puts_a_share_of_its_own_in_the_place_of_the_others(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """In a plan of its own, so that it has both once alice's node asks for hers."""

    async def story() -> None:
        plan, mine = keyed.plan, key_id(SHARE, new_key())
        parties = tuple(
            msgspec.structs.replace(it, state_share=mine)
            if it.name == "aggregator"
            else it
            for it in plan.party
        )
        own = msgspec.structs.replace(plan, party=parties)
        async with start_of(keyed, tmp_path) as start:
            node = replace(start.node, plan=own, plan_hash=plan_hash(own))
            with pytest.raises(CloisterError) as caught:
                await replace(start, node=node).run({})
            assert caught.value.code == "plan-not-consented"
            assert (start.began, start.quotes.quotes) == ([], 0)
            assert start.own.events("keys-released") == []
            # Under the plan of all it goes on to be asked for the real one.
            await start.run({"aggregator": start.other.address})
            assert len(start.began) == 1

    run(story())
