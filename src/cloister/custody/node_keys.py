"""The keys that one node has, gathered before its work begins.

They lie in the process's memory alone. Shares are put together at once and dropped; a
node keeps the state key that comes of them. Under an amended plan it gets the one of
the plan before as well: its state was sealed under that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Final

from structlog.typing import FilteringBoundLogger
from typing_extensions import override

from cloister.attestation.platforms import Platform, SealingPlatform
from cloister.custody.client import CustodianLine
from cloister.custody.share_line import fetch_share
from cloister.custody.state_key import state_key_from_sealing, state_key_from_shares
from cloister.errors import ConfigError, PlatformError
from cloister.plan.digest import digest_bytes
from cloister.plan.plan import Party, Plan, PlanHash
from cloister.plan.site import Address
from cloister.ratls.node import Node
from cloister.storage.keys import KeyKind, KeySource, Secret

_SHARE: Final = "state-share"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeKeys(KeySource):
    """What one node can open and seal.

    Attributes:
        node: The node.
        released: Its keys, by kind; shares are not among them.
        state: Its state key, where that is made of shares.
        state_before: Likewise the one of the plan before it, where there is one.
        platform: Where its state key comes from otherwise, if the platform seals.
    """

    node: Node = field(repr=False)
    released: Mapping[KeyKind, Secret]
    state: Secret | None
    state_before: Secret | None = None
    platform: Platform | None = field(repr=False)

    @override
    def key(self, kind: KeyKind) -> Secret:
        found = self.released.get(kind)
        if found is None:
            raise ConfigError(
                f"this node has no {kind} key",
                code="key-missing",
                expected="a plan that names one for it",
                got=", ".join(self.released) or "none at all",
            )
        return found

    def state_key(self) -> Secret:
        """Returns the key that seals what this node keeps on disk for itself.

        Raises:
            ConfigError: If neither shares nor a platform give it one.
            PlatformError: If the platform cannot.
        """
        if self.state is not None:
            return self.state
        return self._from_sealing(self.node.plan_hash)

    def state_key_before(self) -> Secret:
        """Returns the key that sealed it under the plan that this one amends.

        Of shares it is the very key. A platform's sealing key is another for other
        code: then what comes opens nothing.

        Raises:
            ConfigError: See `state_key`.
            PlatformError: See `state_key`.
            RuntimeError: If the plan amends none.
        """
        if self.state_before is not None:
            return self.state_before
        before = _hash_before(self.node.plan)
        if before is None:
            raise RuntimeError("the plan amends no other")
        return self._from_sealing(before)

    def find_state_key(self) -> Secret | None:
        """Returns the state key, if anything gives this node one.

        A worker whose task keeps nothing between rounds trains without.
        """
        try:
            return self.state_key()
        except ConfigError:
            return None
        except PlatformError as error:
            if error.code != "sealing-unavailable":
                raise
            return None

    def _from_sealing(self, plan_hash: PlanHash) -> Secret:
        node = self.node
        sealing: object = self.platform
        if not isinstance(sealing, SealingPlatform):
            raise ConfigError(
                "this node has no state key",
                code="state-key-missing",
                expected="state_share of two parties in the plan, or a platform with a"
                " sealing key",
                got=self.platform.name if self.platform else "no platform",
            )
        return state_key_from_sealing(
            Secret(sealing.sealing_key()),
            run_id=node.plan.run_id,
            plan_hash=plan_hash,
            role=node.role,
            party=node.party,
        )


async def gather_keys(
    node: Node,
    line: CustodianLine,
    *,
    share_addresses: Mapping[str, Address],
    platform: Platform | None,
    patience_seconds: float,
    log: FilteringBoundLogger,
) -> NodeKeys:
    """Returns the keys that the plan gives to this node.

    Those of its own party come over its own custodian's line, and every other party's
    share from that party's custodian, all at once. One that is missing is known now,
    not after hours of training.

    Args:
        node: The node; it has a warrant.
        line: Its line to its own party's custodian.
        share_addresses: Where the custodians of other parties with a share listen.
        platform: The node's platform, if it is attested.
        patience_seconds: How long each custodian is waited for.
        log: One line with what came, and from whom.

    Raises:
        ConfigError: If it is not known where a custodian listens.
        VerificationError: If a custodian refuses, is refused, or gives another key.
        ProtocolError: If one does not come.
    """
    own = node.plan.find_party(node.party)
    others = other_shareholders(node.plan, own)
    addresses = {name: _address(name, share_addresses) for name in others}
    kinds = own_kinds(own)
    released = (
        await line.keys(kinds, patience_seconds=patience_seconds) if kinds else {}
    )
    fetched = await _all(
        [
            fetch_share(
                node,
                address,
                party=name,
                patience_seconds=patience_seconds,
                log=log,
            )
            for name, address in addresses.items()
        ]
    )
    shares = dict(zip(addresses, fetched, strict=True))
    if _SHARE in released:
        shares[own.name] = released.pop(_SHARE)
    state, before = _states_from(shares, node)
    if kinds or shares:
        log.info(
            "keys-received",
            kinds=[*kinds] if _SHARE in kinds or not shares else [*kinds, _SHARE],
            custodians=sorted({*([own.name] if kinds else []), *addresses}),
        )
    return NodeKeys(
        node=node,
        released=released,
        state=state,
        state_before=before,
        platform=platform,
    )


def own_kinds(party: Party) -> tuple[KeyKind, ...]:
    """Returns the kinds of keys that a node has to get from its own custodian."""
    named: tuple[tuple[KeyKind, bool], ...] = (
        ("data", party.data_key is not None),
        ("vault", party.recipient is not None),
        ("state-share", party.state_share is not None and party.has_state),
    )
    return tuple(kind for kind, there in named if there)


def other_shareholders(plan: Plan, party: Party) -> tuple[str, ...]:
    """Returns the other parties whose share a party's node needs, in plan order."""
    if not party.has_state:
        return ()
    return tuple(it.name for it in plan.shareholders if it.name != party.name)


def _states_from(
    shares: Mapping[str, Secret], node: Node
) -> tuple[Secret | None, Secret | None]:
    """Returns a node's state keys of its plan and of the one before, if of shares.

    An amendment changes neither who holds a share nor which.
    """
    if not shares:
        return None, None

    def under(digest: PlanHash) -> Secret:
        return state_key_from_shares(
            shares,
            plan=node.plan,
            plan_hash=digest,
            role=node.role,
            party=node.party,
        )

    before = _hash_before(node.plan)
    return under(node.plan_hash), None if before is None else under(before)


def _hash_before(plan: Plan) -> PlanHash | None:
    before = plan.predecessor
    return None if before is None else PlanHash(digest_bytes(before.plan))


def _address(name: str, addresses: Mapping[str, Address]) -> Address:
    found = addresses.get(name)
    if found is None:
        raise ConfigError(
            f"the site does not say where the custodian of {name!r} listens",
            code="share-address-missing",
            expected=f"[shares] {name} = 'HOST:PORT' in site.toml: it holds a share of"
            " this node's state key",
        )
    return found


async def _all(fetches: list[Coroutine[None, None, Secret]]) -> list[Secret]:
    """Returns what all give; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(it) for it in fetches]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
