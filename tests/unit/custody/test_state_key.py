from __future__ import annotations

import hashlib
import hmac
import traceback

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.plan_tree import plan_tree, toml_of

from cloister.custody.state_key import state_key_from_sealing, state_key_from_shares
from cloister.errors import (
    CloisterError,
    ConfigError,
    ProtocolError,
    VerificationError,
)
from cloister.plan.plan import Plan, PlanHash, Role, parse_plan, plan_hash
from cloister.storage.keys import KEY_BYTES, Secret, key_id

SEALING_KEY = Secret(b"canary of a sealing key, 32 byte")
SHARES = {
    "aggregator": Secret(b"canary of the aggregator's share"),
    "alice": Secret(b"canary of alice's share, 32 byte"),
    "bob": Secret(b"canary of bob's share, 32 bytes!"),
}
UNSHARED = parse_plan(toml_of(plan_tree()))


def plan_with(shares: dict[str, Secret]) -> Plan:
    """Returns a plan whose parties hold these shares."""
    parties = tuple(
        msgspec.structs.replace(
            party,
            state_share=key_id("state-share", shares[party.name])
            if party.name in shares
            else None,
        )
        for party in UNSHARED.party
    )
    return msgspec.structs.replace(UNSHARED, party=parties)


PLAN = plan_with(SHARES)
HASH = plan_hash(PLAN)


def of_alice(shares: dict[str, Secret], *, plan: Plan = PLAN) -> bytes:
    key = state_key_from_shares(
        shares, plan=plan, plan_hash=HASH, role="worker", party="alice"
    )
    return key.reveal()


def refused(shares: dict[str, Secret], *, plan: Plan = PLAN) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        of_alice(shares, plan=plan)
    shown = traceback.TracebackException.from_exception(
        caught.value, capture_locals=True
    )
    frames = "".join(line for line in shown.format() if "state_key.py" in line)
    assert frames
    assert "canary" not in frames + str(caught.value)
    return caught.value


def hkdf(material: bytes, info: list[str | bytes]) -> bytes:
    """HKDF as RFC 5869 has it, by hand: one block, no salt."""
    pseudorandom = hmac.digest(bytes(32), material, "sha256")
    form = cbor2.dumps(info, canonical=True)
    return hmac.digest(pseudorandom, form + b"\x01", "sha256")


def test_the_key_is_what_the_specification_says_from_shares() -> None:
    mixed = bytes(
        a ^ b ^ c
        for a, b, c in zip(*(s.reveal() for s in SHARES.values()), strict=True)
    )
    names: list[str | bytes] = [
        "cloister/state-key/1",
        "shares",
        PLAN.run_id,
        HASH,
        "worker",
        "alice",
    ]
    assert of_alice(SHARES) == hkdf(mixed, names)


def test_the_key_is_what_the_specification_says_from_a_sealing_key() -> None:
    key = state_key_from_sealing(
        SEALING_KEY, run_id="digits/a", plan_hash=HASH, role="server", party="x"
    )
    names: list[str | bytes] = [
        "cloister/state-key/1",
        "sealing",
        "digits/a",
        HASH,
        "server",
        "x",
    ]
    assert key.reveal() == hkdf(SEALING_KEY.reveal(), names)


def test_the_order_in_which_shares_come_does_not_matter() -> None:
    assert of_alice(dict(reversed(SHARES.items()))) == of_alice(SHARES)


def test_every_place_in_every_run_has_a_key_of_its_own() -> None:
    roles: tuple[Role, ...] = ("server", "worker", "recipient")
    hashes = [HASH, PlanHash(hashlib.sha256(b"another plan").digest())]
    made = [
        derived.reveal()
        for digest in hashes
        for role in roles
        for party in ("alice", "bob")
        for derived in (
            state_key_from_shares(
                SHARES, plan=PLAN, plan_hash=digest, role=role, party=party
            ),
            *(
                state_key_from_sealing(
                    SEALING_KEY, run_id=run_id, plan_hash=digest, role=role, party=party
                )
                for run_id in ("digits/a", "digits/b")
            ),
        )
    ]
    assert len(set(made)) == len(made) == 36
    assert {len(key) for key in made} == {KEY_BYTES}


def test_every_share_counts() -> None:
    keys = [of_alice(SHARES)]
    for name in SHARES:
        shares = SHARES | {name: Secret(bytes(32))}
        keys.append(of_alice(shares, plan=plan_with(shares)))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("missing", SHARES)
def test_a_missing_share_is_named(missing: str) -> None:
    shares = {name: share for name, share in SHARES.items() if name != missing}
    error = refused(shares)
    assert isinstance(error, ProtocolError)
    assert error.code == "share-missing"
    assert error.got == f"none of {missing}"


def test_all_missing_shares_are_named() -> None:
    assert refused({}).got == "none of aggregator, alice, bob"


def test_a_share_of_somebody_who_holds_none_is_refused() -> None:
    plan = plan_with({name: SHARES[name] for name in ("aggregator", "alice")})
    error = refused(SHARES, plan=plan)
    assert isinstance(error, ProtocolError)
    assert (error.code, error.got) == ("share-foreign", "bob")
    assert refused(SHARES | {"eve": SEALING_KEY}).got == "eve"


@pytest.mark.parametrize("wrong", SHARES)
@given(bit=st.integers(0, 255))
def test_a_wrong_share_is_refused_and_its_party_named(wrong: str, bit: int) -> None:
    share = bytearray(SHARES[wrong].reveal())
    share[bit // 8] ^= 1 << bit % 8
    error = refused(SHARES | {wrong: Secret(bytes(share))})
    assert isinstance(error, VerificationError)
    assert error.code == "share-differs"
    assert repr(wrong) in error.what


def test_two_shares_in_each_others_place_are_refused() -> None:
    swapped = {**SHARES, "alice": SHARES["bob"], "bob": SHARES["alice"]}
    assert "'alice'" in refused(swapped).what


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_share_of_another_length_is_refused_though_the_plan_names_it(
    size: int,
) -> None:
    shares = SHARES | {"bob": Secret(b"c" * size)}
    error = refused(shares, plan=plan_with(shares))
    assert (error.code, "'bob'" in error.what) == ("share-differs", True)


def test_a_plan_without_shareholders_is_refused() -> None:
    error = refused({}, plan=UNSHARED)
    assert isinstance(error, ConfigError)
    assert error.code == "shares-unnamed"


@pytest.mark.parametrize("size", [0, 16, 33])
def test_a_sealing_key_of_another_length_is_a_bug(size: int) -> None:
    with pytest.raises(ValueError, match="32"):
        state_key_from_sealing(
            Secret(bytes(size)), run_id="a/b", plan_hash=HASH, role="server", party="x"
        )
