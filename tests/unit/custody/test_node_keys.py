"""All keys of one node, gathered over real ports from real registers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.support.addresses import free_addresses
from tests.support.custodian_port import (
    OpenCustodian,
    custodian_line,
    custodian_port,
)
from tests.support.custody_keys import KeyedFederation, KeysInMemory, make_keyed
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import HandClock
from tests.support.plan_tree import Tree, by_identity, put
from tests.support.recorded_log import RecordedLog
from tests.support.running import Run, until

from cloister.custody.client import CustodianLine
from cloister.custody.custodian import PROOF_LIFE, Custodian
from cloister.custody.key_store import KeyStore, RegisterKeys
from cloister.custody.keyring import IdentityFile, create_keyring
from cloister.custody.node_keys import NodeKeys, gather_keys
from cloister.custody.state_key import state_key_from_sealing, state_key_from_shares
from cloister.errors import (
    ConfigError,
    PlatformError,
    ProtocolError,
    RefusedByPeer,
    VerificationError,
)
from cloister.plan.digest import format_digest
from cloister.plan.plan import PlanHash, plan_hash
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.ratls.proofs import EvidenceProver
from cloister.ratls.warrant import HeldWarrant
from cloister.storage.keys import Secret
from cloister.storage.model_vault import new_identity as new_vault


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Shares of the server's party and alice; bob is not attested, rita receives."""
    return make_keyed(
        tmp_path_factory.mktemp("keyed"), change=lambda tree: by_identity(tree, "bob")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offices:
    """Custodians at work.

    Attributes:
        keyed: Whose.
        clock: Everybody's time.
        custodians: By party.
        ports: By party.
        log: What nodes say.
    """

    keyed: KeyedFederation
    clock: HandClock
    custodians: dict[str, Custodian]
    ports: dict[str, OpenCustodian]
    log: RecordedLog

    def node(self, party: str) -> Node:
        """Returns a party's node before anybody warranted it."""
        node = self.keyed.federation.node(party, clock=self.clock)
        return replace(node, warrant=HeldWarrant())

    def addresses(self, *parties: str) -> dict[str, Address]:
        """Returns where custodians listen."""
        return {party: self.ports[party].address for party in parties}

    @asynccontextmanager
    async def line(self, node: Node) -> AsyncIterator[CustodianLine]:
        """Lends a node's line, after its first warrant."""
        address = self.ports[node.party].address
        async with custodian_line(node, address, log=self.log) as line:
            await line.first_warrant(patience_seconds=5)
            yield line

    async def gather(
        self, node: Node, addresses: dict[str, Address], *, patience: float = 0
    ) -> NodeKeys:
        """Returns all keys of a node."""
        async with self.line(node) as line:
            return await self.gather_over(line, node, addresses, patience=patience)

    async def gather_over(
        self,
        line: CustodianLine,
        node: Node,
        addresses: dict[str, Address],
        *,
        patience: float = 0,
    ) -> NodeKeys:
        """Returns all keys of a node that has a line."""
        prover = node.prover
        return await gather_keys(
            node,
            line,
            share_addresses=addresses,
            platform=prover.platform if isinstance(prover, EvidenceProver) else None,
            patience_seconds=patience,
            log=self.log.logger(),
        )


@asynccontextmanager
async def offices(
    keyed: KeyedFederation,
    directory: Path,
    *parties: str,
    stores: dict[str, KeyStore] | None = None,
) -> AsyncIterator[Offices]:
    """Opens the ports of some parties' custodians."""
    clock = HandClock()
    async with AsyncExitStack() as stack:
        custodians, ports = {}, {}
        for party in parties:
            custodians[party] = stack.enter_context(
                custodian_of(
                    keyed.federation,
                    party,
                    directory,
                    clock=clock,
                    keys=(stores or {}).get(party, keyed.stores[party]),
                )
            )
            ports[party] = await stack.enter_async_context(
                custodian_port(custodians[party])
            )
        yield Offices(
            keyed=keyed,
            clock=clock,
            custodians=custodians,
            ports=ports,
            log=RecordedLog(),
        )


def state_of(
    keyed: KeyedFederation, party: str, *, under: PlanHash | None = None
) -> Secret:
    """Returns the state key that a party's node is to have, or had under a plan."""
    plan = keyed.plan
    return state_key_from_shares(
        {name: keyed.secrets[name, "state-share"] for name in ("aggregator", "alice")},
        plan=plan,
        plan_hash=under or plan_hash(plan),
        role=plan.find_party(party).role,
        party=party,
    )


def missing(keys: NodeKeys) -> set[str]:
    """Returns the kinds that a node has not."""
    kinds = set()
    for kind in ("data", "vault", "state-share"):
        with contextlib.suppress(ConfigError):
            keys.key(kind)
            continue
        kinds.add(kind)
    return kinds


def test_a_worker_has_its_data_key_and_a_state_key(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with offices(keyed, tmp_path, "aggregator", "alice") as all_:
            keys = await all_.gather(all_.node("alice"), all_.addresses("aggregator"))
            assert keys.key("data") == keyed.secrets["alice", "data"]
            assert keys.state_key() == state_of(keyed, "alice")
            # The shares it is made of were dropped.
            assert missing(keys) == {"vault", "state-share"}
            [said] = all_.log.named("keys-received")
            assert said["kinds"] == ["data", "state-share"]
            assert said["custodians"] == ["aggregator", "alice"]
            told = all_.log.text() + repr(keys)
            for key in (*keyed.secrets.values(), keys.state_key()):
                assert key.reveal().hex() not in told
                assert repr(key.reveal())[2:-1] not in told

    run(story())


def test_the_server_has_a_state_key_of_its_own(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with offices(keyed, tmp_path, "aggregator", "alice") as all_:
            keys = await all_.gather(all_.node("aggregator"), all_.addresses("alice"))
            assert keys.state_key() == state_of(keyed, "aggregator")
            assert keys.state_key() != state_of(keyed, "alice")
            assert missing(keys) == {"data", "vault", "state-share"}

    run(story())


@pytest.mark.parametrize(("party", "kind"), [("bob", "data"), ("rita", "vault")])
def test_a_node_without_a_state_asks_its_own_custodian_alone(
    run: Run, keyed: KeyedFederation, tmp_path: Path, party: str, kind: str
) -> None:
    async def story() -> None:
        async with offices(keyed, tmp_path, party) as all_:
            keys = await all_.gather(all_.node(party), {})
            assert keys.key(kind) == keyed.secrets[party, kind]  # type: ignore[arg-type,index]
            assert keys.state is None
            [said] = all_.log.named("keys-received")
            assert (said["kinds"], said["custodians"]) == ([kind], [party])

    run(story())


FORMER = PlanHash(32 * b"\x05")


def amends(tree: Tree) -> Tree:
    """Makes a plan one that takes over the run of another."""
    return put(
        tree,
        ("predecessor",),
        {
            "plan": format_digest(FORMER),
            "state": format_digest(32 * b"\x06"),
            "round": 3,
        },
    )


def test_under_an_amended_plan_a_node_has_the_key_of_the_plan_before_as_well(
    run: Run, tmp_path: Path
) -> None:
    amended = make_keyed(tmp_path / "keys", change=amends)

    async def story() -> None:
        async with offices(amended, tmp_path, "aggregator", "alice") as all_:
            keys = await all_.gather(all_.node("aggregator"), all_.addresses("alice"))
        assert keys.state_key() == state_of(amended, "aggregator")
        assert keys.state_key_before() == state_of(amended, "aggregator", under=FORMER)
        assert keys.state_key_before() != keys.state_key()
        assert keys.state_key_before().reveal().hex() not in repr(keys)

    run(story())


def test_a_platform_seals_under_the_plan_before_what_it_sealed_then(
    run: Run, tmp_path: Path
) -> None:
    amended = make_keyed(tmp_path / "keys", change=amends, holders=())

    async def story() -> None:
        async with offices(amended, tmp_path, "aggregator", "alice") as all_:
            keys = await all_.gather(all_.node("aggregator"), {})
            assert keys.state_key_before() == state_key_from_sealing(
                Secret(amended.federation.platform("aggregator").sealing_key()),
                run_id=amended.plan.run_id,
                plan_hash=FORMER,
                role="server",
                party="aggregator",
            )
            # Simulated TDX: a worker whose task keeps nothing trains without one.
            worker = await all_.gather(all_.node("alice"), {})
            assert worker.find_state_key() is None

    run(story())


def test_of_a_plan_that_amends_none_nobody_asks_for_the_key_before(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with offices(keyed, tmp_path, "bob") as all_:
            keys = await all_.gather(all_.node("bob"), {})
            assert keys.find_state_key() is None
            with pytest.raises(RuntimeError):
                keys.state_key_before()

    run(story())


def test_a_node_without_shares_has_what_its_platform_seals(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    plain = make_keyed(tmp_path / "plain", holders=())

    async def story() -> None:
        async with offices(plain, tmp_path / "a", "aggregator", "alice") as all_:
            node = all_.node("aggregator")
            server = await all_.gather(node, {})
            sealing = plain.federation.platform("aggregator").sealing_key()
            assert server.state_key() == state_key_from_sealing(
                Secret(sealing),
                run_id=plain.plan.run_id,
                plan_hash=node.plan_hash,
                role="server",
                party="aggregator",
            )
            # Nothing was asked for, so nothing is told.
            assert all_.log.named("keys-received") == []
            # A trust domain has no sealing key.
            worker = await all_.gather(all_.node("alice"), {})
            with pytest.raises(PlatformError) as caught:
                worker.state_key()
            assert caught.value.code == "sealing-unavailable"
        async with offices(keyed, tmp_path / "b", "bob") as all_:
            outside = await all_.gather(all_.node("bob"), {})
            with pytest.raises(ConfigError) as refused:
                outside.state_key()
            assert refused.value.code == "state-key-missing"

    run(story())


def test_a_site_that_leaves_a_custodian_out_is_told_whose(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with offices(keyed, tmp_path, "alice") as all_:
            with pytest.raises(ConfigError, match="'aggregator'") as caught:
                await all_.gather(all_.node("alice"), {})
            assert caught.value.code == "share-address-missing"
            # Nothing was asked of anybody before that.
            assert all_.ports["alice"].log.named("keys-released") == []

    run(story())


def test_a_share_that_is_withheld_is_named_before_any_training(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """Its custodian is away, and later it is there without its key."""

    async def story() -> None:
        async with offices(keyed, tmp_path / "a", "alice") as all_:
            [nobody] = free_addresses(1)
            with pytest.raises(ProtocolError) as caught:
                await all_.gather(all_.node("alice"), {"aggregator": nobody})
            assert caught.value.code == "custodian-unreachable"
            assert "'aggregator'" in caught.value.expected
        async with offices(
            keyed,
            tmp_path / "b",
            "aggregator",
            "alice",
            stores={"aggregator": KeysInMemory()},
        ) as all_:
            with pytest.raises(RefusedByPeer, match="'aggregator'") as refused:
                await all_.gather(all_.node("alice"), all_.addresses("aggregator"))
            assert refused.value.code == "key-unknown"

    run(story())


def test_one_share_that_fails_ends_the_waiting_for_the_others(
    run: Run, tmp_path: Path
) -> None:
    three = make_keyed(tmp_path / "keys", holders=("aggregator", "alice", "bob"))

    async def story() -> None:
        async with offices(
            three,
            tmp_path,
            "alice",
            "bob",
            stores={"bob": KeysInMemory()},
        ) as all_:
            [nobody] = free_addresses(1)
            addresses = {"aggregator": nobody, **all_.addresses("bob")}
            # Nobody waits an hour for the one when the other refused.
            with pytest.raises(RefusedByPeer, match="'bob'"):
                await all_.gather(all_.node("alice"), addresses, patience=3600)
            assert not any("fetch_share" in repr(it) for it in asyncio.all_tasks())

    run(story())


def test_a_key_that_its_own_custodian_lacks_is_named_first(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with offices(
            keyed, tmp_path, "aggregator", "alice", stores={"alice": KeysInMemory()}
        ) as all_:
            with pytest.raises(RefusedByPeer) as caught:
                await all_.gather(all_.node("alice"), all_.addresses("aggregator"))
            assert caught.value.code == "key-unknown"
            assert all_.ports["aggregator"].log.named("node-met") == []

    run(story())


def test_a_node_waits_for_the_custodian_of_another_party(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        async with offices(keyed, tmp_path / "a", "alice") as all_:
            waiting = asyncio.ensure_future(
                all_.gather(all_.node("alice"), {"aggregator": address}, patience=20)
            )
            await until(lambda: all_.log.named("waiting-for-share") != [])
            with custodian_of(
                keyed.federation,
                "aggregator",
                tmp_path / "b",
                keys=keyed.stores["aggregator"],
            ) as holder:
                async with custodian_port(holder, address=address):
                    assert (await waiting).state_key() == state_of(keyed, "alice")

    run(story())


def test_a_session_of_long_ago_is_opened_anew_for_keys(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with offices(keyed, tmp_path, "alice") as all_:
            async with all_.line(all_.node("alice")) as line:
                all_.clock.forward(PROOF_LIFE + timedelta(seconds=1))
                keys = await line.keys(("data",), patience_seconds=0)
                assert keys["data"] == keyed.secrets["alice", "data"]
            log = all_.ports["alice"].log
            assert len(log.named("warrant-signed")) == 2
            assert all_.ports["alice"].refusals() == ["proof-old"]

    run(story())


def test_a_custodian_that_was_started_anew_is_asked_again(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        [address] = free_addresses(1)
        clock = HandClock()
        node = replace(
            keyed.federation.node("alice", clock=clock), warrant=HeldWarrant()
        )
        with custodian_of(
            keyed.federation, "alice", tmp_path, keys=keyed.stores["alice"]
        ) as custodian:
            async with custodian_line(node, address) as line:
                async with custodian_port(custodian, address=address):
                    await line.first_warrant(patience_seconds=5)
                async with custodian_port(custodian, address=address):
                    keys = await line.keys(("data",), patience_seconds=0)
        assert keys["data"] == keyed.secrets["alice", "data"]

    run(story())


def test_a_node_that_asks_for_anothers_key_is_stopped_by_itself(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            offices(keyed, tmp_path, "alice") as all_,
            all_.line(all_.node("alice")) as line,
        ):
            with pytest.raises(VerificationError) as caught:
                await line.keys(("vault",), patience_seconds=60)
            assert caught.value.code == "key-not-for-node"

    run(story())


def test_keys_deposits_and_renewals_take_turns_on_one_line(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    async def story() -> None:
        async with (
            offices(keyed, tmp_path, "alice") as all_,
            all_.line(all_.node("alice")) as line,
        ):
            one, _, two = await asyncio.gather(
                line.keys(("data",), patience_seconds=0),
                line.renew(),
                line.keys(("data", "state-share"), patience_seconds=0),
            )
            assert one["data"] == two["data"] == keyed.secrets["alice", "data"]

    run(story())


def test_keys_lie_sealed_in_the_register_until_they_are_released(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """The built-in store, from a sealed key on disk to the node's memory."""

    async def story() -> None:
        with custodian_of(keyed.federation, "alice", tmp_path) as custodian:
            identity = tmp_path / "identity.txt"
            identity.write_text(new_vault()[0] + "\n")
            identity.chmod(0o600)
            lock = IdentityFile(path=identity)
            path = tmp_path / "keyring.age"
            create_keyring(path, party="alice", lock=lock)
            store = RegisterKeys.open(custodian.register, path=path, lock=lock)
            secret = keyed.secrets["alice", "data"]
            name = store.add("data", label="main", at=HandClock()(), secret=secret)
            async with custodian_port(replace(custodian, keys=store)) as office:
                node = replace(keyed.federation.node("alice"), warrant=HeldWarrant())
                async with custodian_line(node, office.address) as line:
                    await line.first_warrant(patience_seconds=5)
                    keys = await line.keys(("data",), patience_seconds=0)
                    assert keys["data"] == secret
                    store.revoke(name, at=HandClock()())
                    with pytest.raises(RefusedByPeer) as caught:
                        await line.keys(("data",), patience_seconds=60)
                    assert caught.value.code == "key-revoked"

    run(story())
    for file in tmp_path.iterdir():
        assert keyed.secrets["alice", "data"].reveal() not in file.read_bytes()
