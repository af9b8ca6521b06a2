"""Makes everybody's site and custodian, with the keys that the plan will name."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloister.attestation.reports import Tee
from cloister.cli.custodian_files import write_custodian
from cloister.cli.custodians import open_keys, open_register
from cloister.cli.places import read_custodian_place
from cloister.cli.site_files import COLLATERAL, SiteEntry, site_text
from cloister.errors import PlatformError
from cloister.plan.plan import Role
from cloister.storage.keys import KeyKind

# Where the ports of a deployment are looked for.
_PORTS = range(20_000, 32_000)
# The owner's word for the keys made here.
_LABEL = "first"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyOrder:
    """A party to make.

    Attributes:
        name: Its name.
        role: What its node does.
        tee: Kind of its simulated platform; None where its key alone admits its node,
            which runs on the party's own machine.
    """

    name: str
    role: Role
    tee: Tee | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeCustodian:
    """What a plan names of a custodian.

    Attributes:
        key: The party's public key.
        keys: The names of the keys that it keeps, by kind.
    """

    key: str
    keys: Mapping[KeyKind, str]


def make_sites(
    draft: Path,
    parties: Sequence[PartyOrder],
    *,
    shareholders: Sequence[str],
    at: datetime,
) -> dict[str, MadeCustodian]:
    """Writes everybody's custodian and site; returns the custodians by party.

    Args:
        draft: The deployment's directory.
        parties: Everybody.
        shareholders: Whose custodians get a share of the state keys.
        at: Now; the custodians record when their keys were made.

    Raises:
        CloisterError: If something cannot be written.
        OSError: Likewise.
    """
    enrolment, training, *addresses = _free_addresses(2 + len(parties))
    custodians = dict(zip((it.name for it in parties), addresses, strict=True))
    made: dict[str, MadeCustodian] = {}
    for party in parties:
        name = party.name
        made[name] = _make_custodian(
            draft / "custodians" / name,
            party=name,
            address=custodians[name],
            kinds=_kinds(party, shareholders),
            at=at,
        )
        site = SiteEntry(
            party=name,
            tee=party.tee,
            ports=None if party.role == "recipient" else (enrolment, training),
            custodian=custodians[name],
            with_data=party.role == "worker",
            shares={it: custodians[it] for it in _others(party, shareholders)},
        )
        (draft / "parties" / name / "site.toml").write_text(site_text(site))
    return made


def _kinds(party: PartyOrder, shareholders: Sequence[str]) -> list[KeyKind]:
    """Returns what keys the party's custodian makes."""
    kinds: list[KeyKind] = []
    if party.role == "worker":
        kinds.append("data")
    if party.role == "recipient":
        kinds.append("vault")
    if party.name in shareholders:
        kinds.append("state-share")
    return kinds


def _others(party: PartyOrder, shareholders: Sequence[str]) -> list[str]:
    """Returns whose shares the node needs beside its own party's, for its state."""
    if party.tee is None or party.role == "recipient":
        return []
    return [name for name in shareholders if name != party.name]


def _make_custodian(
    directory: Path,
    *,
    party: str,
    address: str,
    kinds: Sequence[KeyKind],
    at: datetime,
) -> MadeCustodian:
    directory.mkdir(parents=True)
    key = write_custodian(
        directory, party=party, address=address, collateral=COLLATERAL
    )
    place = read_custodian_place(directory)
    with open_register(place) as register:
        keys = open_keys(place, register)
        names = {kind: keys.add(kind, label=_LABEL, at=at) for kind in kinds}
    return MadeCustodian(key=key, keys=names)


def _free_addresses(count: int) -> list[str]:
    """Returns loopback addresses nobody uses at this moment.

    Below the range from which systems give ports to outgoing connections, so that none
    of those takes one before its node listens there.
    """
    found: list[str] = []
    with ExitStack() as held:
        for port in secrets.SystemRandom().sample(_PORTS, k=len(_PORTS)):
            each = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                found.append(f"127.0.0.1:{port}")
            if len(found) == count:
                return found
    raise PlatformError(
        "no free port on the loopback interface",
        code="port-unusable",
        expected=f"{count} free ports from {_PORTS[0]} to {_PORTS[-1]}",
        got=str(len(found)),
    )
