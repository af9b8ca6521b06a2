"""The text of the site files that `cloister init` writes for people to edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.cli.custodian_files import KEY_FILE

DATA_FILE = "data.sealed"  # beside a worker's site


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEntry:
    """What one party's node knows.

    Attributes:
        party: The party.
        tee: Kind of its simulated platform; None where its key admits its node.
        ports: The server's enrolment and training port; None for a recipient.
        custodian: Where its custodian listens.
        with_data: Whether it has records.
        shares: Where other shareholders' custodians listen.
    """

    party: str
    tee: str | None
    ports: tuple[str, str] | None
    custodian: str
    with_data: bool
    shares: Mapping[str, str]


def site_text(entry: SiteEntry) -> str:
    """Returns a party's site file."""
    return _SITE.format(
        party=entry.party,
        proof=_proof(entry),
        party_key=_party_key(entry),
        addresses=_addresses(entry.ports),
        custodian=entry.custodian,
        collateral=COLLATERAL,
        data=f'data = "{DATA_FILE}"\n' if entry.with_data else "",
        shares=_shares(entry.shares),
    )


def _proof(entry: SiteEntry) -> str:
    return "" if entry.tee is None else _PLATFORM.format(tee=entry.tee)


def _party_key(entry: SiteEntry) -> str:
    if entry.tee is not None:
        return ""
    return f'party_key = "../../custodians/{entry.party}/{KEY_FILE}"\n'


def _addresses(ports: tuple[str, str] | None) -> str:
    if ports is None:
        return ""
    enrolment, training = map(json.dumps, ports)
    return f"{_ADDRESSES}\nenrolment = {enrolment}\ntraining = {training}\n\n"


def _shares(custodians: Mapping[str, str]) -> str:
    if not custodians:
        return ""
    lines = [f"{name} = {json.dumps(at)}" for name, at in custodians.items()]
    return "\n".join(("", _SHARES, *lines, ""))


COLLATERAL = """\
[collateral]                         # about others' platforms; verified each time
trust_root = "../../trust-root.der"  # must be the root that the plan names
directory = "../../collateral"
"""

_PLATFORM = """\
[platform]
kind = "simulated-{tee}"             # software that protects nothing: for trying out
directory = "insecure-simulated-platform"

"""

_ADDRESSES = """\
[addresses]                          # the server listens here, workers call here"""

_SHARES = """\
[shares]                             # custodians of the other parties with a share"""

_SITE = """\
# What this node alone knows; unhashed. Paths are relative to this file.
party = "{party}"
patience_seconds = 120.0             # longest silence; longer than a round computes

{proof}{collateral}
[custodian]                          # this party's own; warrants this node
address = "{custodian}"
{party_key}
{addresses}[paths]
runs = "../../runs"
{data}{shares}"""
