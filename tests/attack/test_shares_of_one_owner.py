"""One owner alone, with all that he has, looks for the state key of his own node.

He has his custodian's disk and what opens it, his node's code, the plan, and all that
his node sent and was sent. He does not have the other owner's share.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import cbor2
import msgspec
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from tests.support.custodian_port import custodian_line
from tests.support.custody_calls import fresh_node
from tests.support.custody_keys import KeyedFederation, make_keyed
from tests.support.custody_safes import (
    check_no_key_in,
    check_no_key_on_disk,
    keyring_of,
    office_of,
    token_of,
)
from tests.support.recorded_log import RecordedLog
from tests.support.relay import always, relay
from tests.support.running import Run

from cloister.custody.keyring import open_keyring
from cloister.custody.node_keys import gather_keys
from cloister.custody.state_key import state_key_from_shares
from cloister.errors import CloisterError
from cloister.plan.plan import plan_hash
from cloister.storage.keys import Secret, key_id


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> KeyedFederation:
    """Alice and the server's party hold shares of every node's state key."""
    return make_keyed(tmp_path_factory.mktemp("keyed"))


def xor(first: bytes, second: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(first, second, strict=True))


def derived(keyed: KeyedFederation, material: bytes) -> bytes:
    """Returns the state key of alice's node from what goes into it.

    Written from the specification: anybody can do it.
    """
    plan = keyed.plan
    info = cbor2.dumps(
        [
            "cloister/state-key/1",
            "shares",
            plan.run_id,
            plan_hash(plan),
            "worker",
            "alice",
        ],
        canonical=True,
    )
    hkdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=info)
    return hkdf.derive(material)


def refusal(keyed: KeyedFederation, shares: dict[str, Secret]) -> str:
    with pytest.raises(CloisterError) as caught:
        state_key_from_shares(
            shares,
            plan=keyed.plan,
            plan_hash=plan_hash(keyed.plan),
            role="worker",
            party="alice",
        )
    check_no_key_in(repr(caught.value), keyed.secrets.values())
    assert "aggregator" in str(caught.value)
    return caught.value.code


async def run_and_record(keyed: KeyedFederation, directory: Path) -> tuple[bytes, str]:
    """Returns the state key of a real node, and what its owner heard on the wire."""
    node, log = fresh_node(keyed, "alice"), RecordedLog()
    async with (
        office_of(keyed, "alice", directory / "alice") as own,
        office_of(keyed, "aggregator", directory / "aggregator") as other,
        relay(always(other.address)) as tap,
        custodian_line(node, own.address, log=log) as line,
    ):
        await line.first_warrant(patience_seconds=0)
        keys = await gather_keys(
            node,
            line,
            share_addresses={"aggregator": tap.address},
            platform=None,
            patience_seconds=0,
            log=log.logger(),
        )
    assert keys.state is not None
    check_no_key_in(tap.heard + log.text().encode(), keyed.secrets.values())
    check_no_key_on_disk(directory, [keys.state, *keyed.secrets.values()])
    return keys.state.reveal(), tap.heard.hex()


def test_an_owner_tries_everything_that_he_has(
    run: Run, keyed: KeyedFederation, tmp_path: Path
) -> None:
    state, heard = run(run_and_record(keyed, tmp_path))
    own = keyed.secrets["alice", "state-share"].reveal()
    theirs = keyed.secrets["aggregator", "state-share"].reveal()
    # With both it is no secret to whoever can read the specification.
    assert derived(keyed, xor(own, theirs)) == state
    home = tmp_path / "alice"
    ring = open_keyring(
        keyring_of("alice", home), party="alice", lock=token_of("alice", home)
    )
    plan = keyed.plan
    names = [str(it.state_share).removeprefix("sha256:") for it in plan.shareholders]
    has = [
        *(bytes.fromhex(name) for name in names),
        *(key.reveal() for key in ring.keys.values()),
        keyed.secrets["alice", "data"].reveal(),
        plan_hash(plan),
        bytes(32),
        own,
    ]
    for first, second in itertools.product(has, repeat=2):
        assert derived(keyed, xor(first, second)) != state
    # Nor is the other share, or the sum of both, anywhere in what went by.
    for form in (theirs, xor(own, theirs), state):
        assert form.hex() not in heard


def test_the_code_takes_no_share_for_another(keyed: KeyedFederation) -> None:
    own = keyed.secrets["alice", "state-share"]
    assert refusal(keyed, {"alice": own}) == "share-missing"
    assert refusal(keyed, {"aggregator": own}) == "share-missing"
    for made_up in (own.reveal(), bytes(32), own.reveal()[::-1], b"", own.reveal() * 2):
        shares = {"alice": own, "aggregator": Secret(made_up)}
        assert refusal(keyed, shares) == "share-differs"


def test_one_share_says_nothing_of_the_key(keyed: KeyedFederation) -> None:
    """With each share that the other may hold, the owner's own makes another key.

    So his excludes none: it is a one-time pad. Only the names are changed in the plan,
    for the code takes no share that has another one.
    """
    own, plan = keyed.secrets["alice", "state-share"], keyed.plan
    keys = set()
    for number in range(256):
        other = Secret(bytes([number]) * 32)
        name = key_id("state-share", other)
        parties = tuple(
            msgspec.structs.replace(it, state_share=name)
            if it.name == "aggregator"
            else it
            for it in plan.party
        )
        key = state_key_from_shares(
            {"alice": own, "aggregator": other},
            plan=msgspec.structs.replace(plan, party=parties),
            plan_hash=plan_hash(plan),
            role="worker",
            party="alice",
        )
        assert key.reveal() == derived(keyed, xor(own.reveal(), other.reveal()))
        keys.add(key.reveal())
    assert len(keys) == 256
