"""The plan's parties, and the rules that hold between them."""

from __future__ import annotations

from typing import Literal

import msgspec

from cloister.attestation.policy_schema import check_platform_ids
from cloister.errors import ConfigError
from cloister.plan.digest import Digest
from cloister.plan.keys import parse_party_key
from cloister.plan.sections import Name

Role = Literal["server", "worker"]
Admit = Literal["attested", "identity"]


class Party(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[party]]``: one participant, its role and its custodian's key.

    Attributes:
        name: The party.
        role: What its node does.
        key: Signs its consents and warrants; it stays at the party's own site.
        admit: How its node proves itself: by evidence, or by this key alone.
        data: Digest of a worker's records.
        platforms: PPIDs or platform instance IDs of the machines its node may run on;
            None where all that its role's policy accepts will do.
    """

    name: Name
    role: Role
    key: str
    admit: Admit = "attested"
    data: Digest | None = None
    platforms: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        parse_party_key(self.key)
        if (self.data is not None) != (self.role == "worker"):
            raise ConfigError(
                f"party {self.name!r} and its data do not fit",
                code="party-data",
                expected="'data' for every worker and for no server",
                got=f"role {self.role!r} {'with' if self.data else 'without'} data",
            )
        # It sees every single update: no party's word replaces evidence there.
        if self.role == "server" and self.admit != "attested":
            raise ConfigError(
                f"the server {self.name!r} is not attested",
                code="party-admit",
                expected="admit = 'attested' for the server",
                got=repr(self.admit),
            )
        _check_platforms(self)


def check_parties(parties: tuple[Party, ...]) -> tuple[Party, ...]:
    """Returns `parties`, if together they make a federation.

    Raises:
        ConfigError: If not one is a server, none is a worker, or two share what is
            each one's own.
    """
    servers = sum(p.role == "server" for p in parties)
    if servers != 1 or servers == len(parties):
        raise ConfigError(
            "the plan's parties do not make a federation",
            code="parties-invalid",
            expected="exactly one server and at least one worker",
            got=f"{servers} servers and {len(parties) - servers} workers",
        )
    for what, values in (
        ("name", [p.name for p in parties]),
        ("key", [p.key for p in parties]),
        # Counted twice, one party's records would weigh twice.
        ("data set", [p.data for p in parties if p.data is not None]),
    ):
        repeated = {v for v in values if values.count(v) > 1}
        if repeated:
            raise ConfigError(
                f"two parties share a {what}",
                code="parties-repeat",
                expected=f"a {what} of its own for every party",
                got=", ".join(sorted(repeated)),
            )
    return parties


def _check_platforms(party: Party) -> None:
    if party.platforms is None:
        return
    code = "party-platforms"
    if party.admit != "attested":
        raise ConfigError(
            f"the platforms of {party.name!r} would be ignored",
            code=code,
            expected="platforms only for a party that is attested",
            got=f"admit = {party.admit!r}",
            remedy="Remove them: no evidence says where its node runs.",
        )
    if not party.platforms:
        raise ConfigError(
            f"the plan accepts no machine of {party.name!r}",
            code=code,
            expected="PPIDs or platform instance IDs, or no 'platforms' at all",
            got="an empty list",
            remedy="`cloister quote verify` prints both of a machine's quote",
        )
    check_platform_ids(party.platforms, code=code)


def check_colluders(parties: tuple[Party, ...], tolerated: int | None) -> int | None:
    """Returns the number of colluders the plan tolerates; None if all are attested.

    An attested worker's node shows nobody the sums it receives. A worker with nothing
    but a key shows its owner, who may pool them with others and subtract what is
    theirs. With k of them together, what is left is the sum of all other updates: of
    two at least, or it is a single party's update.

    Args:
        parties: The plan's parties.
        tolerated: ``[rounds] tolerated_colluders``.

    Raises:
        ConfigError: If the number is missing, would be ignored, or is too large.
    """
    workers = [party for party in parties if party.role == "worker"]
    identities = [party.name for party in workers if party.admit == "identity"]
    if tolerated is None:
        if identities:
            raise ConfigError(
                f"the plan does not say how many parties may collude, and"
                f" {', '.join(identities)} need not be attested",
                code="colluders-missing",
                expected="[rounds] tolerated_colluders, from 0 to the number of"
                " workers less 2",
                remedy="Their owners see every sum: say how many may pool what they"
                " see.",
            )
        return None
    if not identities:
        raise ConfigError(
            "a setting would be ignored",
            code="colluders-unused",
            expected="[rounds] tolerated_colluders only with workers admitted by"
            " identity",
            got=str(tolerated),
            remedy="Remove it: what attested workers receive stays in their nodes.",
        )
    if len(workers) < tolerated + 2:
        raise ConfigError(
            "too few workers to hide one party's update from the others",
            code="colluders-too-many",
            expected=f"at least {tolerated + 2} workers for {tolerated} tolerated"
            " colluders",
            got=str(len(workers)),
            remedy="Tolerate fewer, let more take part, or attest all workers.",
        )
    return tolerated
