"""A party keeps its share of a state key back, or gives something else, or nobody's.

Without all shares a node has no state key and does not begin. The error names whose
share it is. Ports, registers, keyrings and logs are real.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.addresses import free_addresses
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_in,
    check_no_key_on_disk,
)
from tests.support.federation_in_memory import START
from tests.support.running import Run
from tests.support.started_worker import SHARE, Start, start_of
from tests.support.turned_custodian import Answer, turned_port

from cloister.custody.key_store import RegisterKeys
from cloister.custody.released_keys import seal_keys
from cloister.errors import ProtocolError
from cloister.plan.plan import plan_hash
from cloister.ratls.transcript import Transcript
from cloister.storage.keys import KeyKind, Secret, new_key


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Alice and the server's party hold shares of every node's state key."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


def test_all_that_hold_a_share_give_it(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    """The story without an attack, to measure the others by."""

    async def story() -> None:
        async with start_of(keyed, tmp_path) as start:
            await start.run({"aggregator": start.other.address})
            [keys] = start.began
            assert keys.state is not None
            # The shares themselves were dropped.
            assert set(keys.released) == {"data"}
            check_no_key_in(repr(keys), [keys.state, *keyed.secrets.values()])
            check_no_key_on_disk(tmp_path, [keys.state])
            [said] = start.other.events("keys-released")
            assert (said["node_party"], said["kinds"]) == ("alice", [SHARE])

    run(story())


# Withheld


def withdraws(start: Start) -> None:
    start.other.custodian.register.withdraw(plan_hash(start.keyed.plan), at=START)


def revokes(start: Start) -> None:
    keys = start.other.custodian.keys
    assert isinstance(keys, RegisterKeys)
    name = start.keyed.plan.find_party("aggregator").state_share
    keys.revoke(str(name), at=START)


@pytest.mark.parametrize(
    ("does", "code", "quotes"),
    [(withdraws, "plan-withdrawn", 1), (revokes, "key-revoked", 2)],
)
def test_a_party_takes_its_word_or_its_share_back(
    run: Run,
    keyed: KeyedFederation,
    tmp_path: Path,
    does: Callable[[Start], None],
    code: str,
    quotes: int,
) -> None:
    async def story() -> None:
        async with start_of(keyed, tmp_path) as start:
            does(start)
            error = await start.fails(start.other.address)
            assert error.code == code
            assert "custodian of 'aggregator'" in error.what
            assert start.quotes.quotes == quotes
            assert start.other.refusals() == [code]

    run(story())


def test_a_custodian_is_away(run: Run, keyed: KeyedFederation, tmp_path: Path) -> None:
    async def story() -> None:
        async with start_of(keyed, tmp_path) as start:
            [nowhere] = free_addresses(1)
            error = await start.fails(nowhere)
            assert isinstance(error, ProtocolError)
            assert error.code == "custodian-unreachable"
            assert "'aggregator', who holds a share" in error.expected
            assert start.quotes.quotes == 1
            assert start.other.custodian.register.foreign_warrants() == ()

    run(story())


# Something else instead


def sealing(kinds: dict[KeyKind, Secret]) -> Answer:
    def answer(transcript: Transcript, epoch: int) -> bytes:
        return seal_keys(kinds, transcript=transcript, epoch=epoch)

    return answer


@pytest.mark.parametrize(
    "given",
    ["a new share", "alice's own", "zeros", "short", "long", "a kind of its own"],
)
def test_a_custodian_that_was_taken_over_gives_something_else(
    run: Run, keyed: KeyedFederation, tmp_path: Path, given: str
) -> None:
    """It would choose the state key, or have it be the owner's own share alone."""
    share = keyed.secrets["aggregator", SHARE]
    kinds: dict[str, dict[KeyKind, Secret]] = {
        "a new share": {SHARE: new_key()},
        "alice's own": {SHARE: keyed.secrets["alice", SHARE]},
        "zeros": {SHARE: Secret(bytes(32))},
        "short": {SHARE: Secret(share.reveal()[:31])},
        "long": {SHARE: Secret(share.reveal() + b"\0")},
        "a kind of its own": {"data": share},
    }

    async def story() -> None:
        async with start_of(keyed, tmp_path) as start:
            answer = sealing(kinds[given])
            async with turned_port(start.other.custodian, answer) as turned:
                error = await start.fails(turned.address)
            code = "released-keys" if "kind" in given else "key-differs"
            assert error.code == code
            assert "custodian of 'aggregator'" in error.what
            assert turned.heard() == [code]

    run(story())
