"""The key that seals a node's state on its host's disk, derived in the node.

On SGX it comes from the platform's sealing key. Elsewhere it comes from shares, which
the custodians of at least two parties release to the node: no one of them can open the
state alone, and all of them together can. Both ways name the run, the plan, the role
and the party, so a key is good for one node's place in one run.

Where shares and sealing keys come from, and what the key seals, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import cbor2
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.errors import ConfigError, ProtocolError, VerificationError
from cloister.plan.plan import Plan, PlanHash, Role
from cloister.storage.keys import KEY_BYTES, Secret, key_id

MIN_SHAREHOLDERS = 2

_LABEL = "cloister/state-key/1"
_Origin = Literal["sealing", "shares"]


def state_key_from_sealing(
    sealing_key: Secret, *, run_id: str, plan_hash: PlanHash, role: Role, party: str
) -> Secret:
    """Returns the state key of a node whose platform has a sealing key.

    Args:
        sealing_key: From the node's platform (`SealingPlatform`), 32 bytes.
        run_id: The run.
        plan_hash: The plan's hash.
        role: The node's role.
        party: The node's party.

    Raises:
        ValueError: If the sealing key has another length; a bug of the caller.
    """
    if len(sealing_key.reveal()) != KEY_BYTES:
        raise ValueError(f"a sealing key has {KEY_BYTES} bytes")
    return _derived(
        sealing_key,
        origin="sealing",
        names=[run_id, plan_hash, role, party],
    )


def state_key_from_shares(
    shares: Mapping[str, Secret],
    *,
    plan: Plan,
    plan_hash: PlanHash,
    role: Role,
    party: str,
) -> Secret:
    """Returns the state key of a node that has all shareholders' shares.

    1. The plan names at least two shareholders.
    2. There is a share of each of them, and of nobody else.
    3. Each is the very share that the plan names.

    Args:
        shares: By party.
        plan: The plan.
        plan_hash: Its hash.
        role: The node's role.
        party: The node's party.

    Raises:
        ConfigError: If the plan names fewer than two shareholders.
        ProtocolError: If a share is missing, or nobody asked for it.
        VerificationError: If a share is another one than the plan names.
    """
    # 1
    named = {p.name: p.state_share for p in plan.shareholders}
    if len(named) < MIN_SHAREHOLDERS:
        raise ConfigError(
            "the plan lets nobody make a state key from shares",
            code="shares-unnamed",
            expected=f"state_share for at least {MIN_SHAREHOLDERS} parties",
            got=", ".join(named) or "none",
        )
    # 2
    _require_exactly(shares, named=list(named))
    # 3
    for name, wanted in named.items():
        _require_named(shares[name], of=name, wanted=wanted)
    return _derived(
        _mixed([shares[name] for name in named]),
        origin="shares",
        names=[plan.run_id, plan_hash, role, party],
    )


def _require_exactly(shares: Mapping[str, Secret], *, named: list[str]) -> None:
    if missing := [name for name in named if name not in shares]:
        raise ProtocolError(
            "shares of the state key are missing",
            code="share-missing",
            expected=f"a share of each of {', '.join(named)}",
            got=f"none of {', '.join(missing)}",
            remedy="Their custodians must run, and let this node in.",
        )
    if foreign := sorted(shares.keys() - set(named)):
        raise ProtocolError(
            "shares came from parties that hold none",
            code="share-foreign",
            expected=f"shares of {', '.join(named)} alone",
            got=", ".join(foreign),
        )


def _require_named(share: Secret, *, of: str, wanted: str | None) -> None:
    got = key_id("state-share", share)
    if got != wanted or len(share.reveal()) != KEY_BYTES:
        raise VerificationError(
            f"the share of {of!r} is not the one in the plan",
            code="share-differs",
            expected=f"{KEY_BYTES} bytes with the name {wanted}",
            got=got,
            remedy=f"The custodian of {of!r} must keep the key that the plan names.",
        )


def _mixed(shares: list[Secret]) -> Secret:
    """Returns the XOR of shares of one length: with one missing it is any bytes."""
    mixed = 0
    for share in shares:
        mixed ^= int.from_bytes(share.reveal())
    return Secret(mixed.to_bytes(KEY_BYTES))


def _derived(material: Secret, *, origin: _Origin, names: list[str | bytes]) -> Secret:
    # No salt (RFC 5869, 3.1): the material is 32 uniform bytes that nobody else gave.
    info = cbor2.dumps([_LABEL, origin, *names], canonical=True)
    hkdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info)
    return Secret(hkdf.derive(material.reveal()))
