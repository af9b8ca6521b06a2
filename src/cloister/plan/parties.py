"""The plan's parties, and the rules that hold between them."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import msgspec

from cloister.attestation.policy_schema import check_platform_ids
from cloister.errors import ConfigError
from cloister.plan.digest import Digest
from cloister.plan.keys import parse_party_key
from cloister.plan.sections import check_recipient
from cloister.plan.values import Name

Role = Literal["server", "worker", "recipient"]
Admit = Literal["attested", "identity"]


class Party(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[party]]``: one participant, its role and its custodian's key.

    Attributes:
        name: The party.
        role: What its node does.
        key: Signs its consents and warrants; it stays at the party's own site.
        admit: How its node proves itself: by evidence, or by this key alone.
        data: Digest of a worker's records (a sealed set's manifest; else the raw
            shard's); of those that a recipient evaluates the model on, if any.
        platforms: PPIDs or platform instance IDs of the machines its node may run on;
            None where all that its role's policy accepts will do.
        data_key: The key of the party's sealed data (`storage.keys.key_id`); None
            where a worker's records are not sealed. With it a recipient predicts on
            whatever its party sealed under it.
        state_share: The party's share of every attested node's state key, likewise.
        recipient: To whom the model is sealed so that an attested recipient opens it:
            an age recipient, whose identity the party's custodian keeps.
        predictions_to: To whom a recipient's node seals what the model predicts, as an
            age recipient; None where it predicts nothing.
    """

    name: Name
    role: Role
    key: str
    admit: Admit = "attested"
    data: Digest | None = None
    platforms: tuple[str, ...] | None = None
    data_key: Digest | None = None
    state_share: Digest | None = None
    recipient: str | None = None
    predictions_to: str | None = None

    @property
    def has_state(self) -> bool:
        """Whether the party's node has a state key, made of shares where there are any.

        Nodes that train have, for they alone have a state to seal. All state keys come
        from the same shares, so whoever had them all could open the state of any node:
        what is admitted by identity runs nobody knows what, and gets none.
        """
        return self.admit == "attested" and self.role != "recipient"

    def __post_init__(self) -> None:
        parse_party_key(self.key)
        _check_data(self)
        # No party's word replaces evidence there: the server sees every single update,
        # and a recipient gets the model's key from its custodian by its evidence.
        if self.role != "worker" and self.admit != "attested":
            raise ConfigError(
                f"the {self.role} {self.name!r} is not attested",
                code="party-admit",
                expected=f"admit = 'attested' for a {self.role}",
                got=repr(self.admit),
            )
        _check_recipient(self)
        _check_platforms(self)


def check_parties(parties: tuple[Party, ...]) -> tuple[Party, ...]:
    """Returns `parties`, if together they make a federation.

    Raises:
        ConfigError: If not one is a server, none is a worker, two share what is each
            one's own, or one alone holds a share of the state keys.
    """
    servers = sum(p.role == "server" for p in parties)
    workers = sum(p.role == "worker" for p in parties)
    if servers != 1 or not workers:
        raise ConfigError(
            "the plan's parties do not make a federation",
            code="parties-invalid",
            expected="exactly one server and at least one worker",
            got=f"{servers} servers and {workers} workers",
        )
    for what, values in (
        ("name", [p.name for p in parties]),
        ("key", [p.key for p in parties]),
        # Counted twice, one party's records would weigh twice. Nobody's weigh anything
        # where they are only evaluated.
        ("data set", [p.data for p in parties if p.role == "worker"]),
        ("data key", [p.data_key for p in parties]),
        # Two equal shares, combined by XOR, are none.
        ("state share", [p.state_share for p in parties]),
        ("recipient", [p.recipient for p in parties]),
    ):
        counts = Counter(value for value in values if value is not None)
        if repeated := sorted(value for value, n in counts.items() if n > 1):
            raise ConfigError(
                f"two parties share a {what}",
                code="parties-repeat",
                expected=f"a {what} of its own for every party",
                got=", ".join(repeated),
            )
    _check_shares(parties)
    return parties


def _check_shares(parties: tuple[Party, ...]) -> None:
    """Refuses a single share: whoever holds it could open every node's state."""
    holders = [p.name for p in parties if p.state_share is not None]
    if len(holders) == 1:
        raise ConfigError(
            f"{holders[0]!r} alone holds the key of every node's state",
            code="shares-too-few",
            expected="a state_share of at least two parties, or of none",
            got="one",
            remedy="Let another party's custodian make one:"
            " cloister custodian keys add DIR state-share.",
        )


def _check_data(party: Party) -> None:
    allowed = {"worker": (True,), "recipient": (True, False), "server": (False,)}
    if (party.data is not None) not in allowed[party.role]:
        raise ConfigError(
            f"party {party.name!r} and its data do not fit",
            code="party-data",
            expected="'data' for every worker, for a recipient at will, and for nobody"
            " else",
            got=f"role {party.role!r} {'with' if party.data else 'without'} data",
        )
    if party.data_key is not None and party.role == "server":
        raise ConfigError(
            f"the data key of {party.name!r} would be ignored",
            code="party-data-key",
            expected="'data_key' only for a worker or a recipient",
            got=f"role {party.role!r} with a data key",
        )


def _check_recipient(party: Party) -> None:
    if (party.recipient is not None) != (party.role == "recipient"):
        raise ConfigError(
            f"party {party.name!r} and its recipient do not fit",
            code="party-recipient",
            expected="'recipient' for every party of that role and for nobody else",
            got=f"role {party.role!r}"
            f" {'with' if party.recipient else 'without'} a recipient",
            remedy="Who gets the model without an attested node stands in"
            " [model] recipients.",
        )
    if party.recipient is not None:
        check_recipient(party.recipient)
    _check_predictions(party)


def _check_predictions(party: Party) -> None:
    """Refuses predictions of nothing, and for nobody.

    The node predicts on records that the party sealed under its data key: a host that
    could give records of its own would read the model off the answers.
    """
    if party.role != "recipient":
        if party.predictions_to is None:
            return
        raise ConfigError(
            f"the predictions of {party.name!r} would be ignored",
            code="party-predictions",
            expected="'predictions_to' only for a recipient",
            got=f"role {party.role!r}",
        )
    if party.predictions_to is None:
        if party.data_key is None or party.data is not None:
            return
        raise ConfigError(
            f"the data key of {party.name!r} would be ignored",
            code="party-data-key",
            expected="'data_key' of a recipient with 'data' or 'predictions_to'",
            got="neither",
        )
    check_recipient(party.predictions_to)
    if party.data_key is None:
        raise ConfigError(
            f"the node of {party.name!r} would predict on anybody's records",
            code="party-predictions",
            expected="'data_key' for a recipient with 'predictions_to'",
            got="none",
            remedy="A recipient predicts on what its party sealed under its data key.",
        )


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


def check_colluders(
    parties: tuple[Party, ...], tolerated: int | None, *, contributors: int
) -> int | None:
    """Returns the number of colluders the plan tolerates; None if all are attested.

    An attested worker's node shows nobody the sums it receives. A worker with nothing
    but a key shows its owner, who may pool them with others and subtract what is
    theirs. With k of them together, what is left is the sum of all other updates in
    the round: of two at least, or it is a single party's update.

    Args:
        parties: The plan's parties.
        tolerated: ``[rounds] tolerated_colluders``.
        contributors: How many updates every round's mean is of, at least.

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
                expected="[rounds] tolerated_colluders, from 0 to the least number of"
                " contributors less 2",
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
    if contributors < tolerated + 2:
        raise ConfigError(
            "too few contributors to hide one party's update from the others",
            code="colluders-too-many",
            expected=f"at least {tolerated + 2} contributors in every round for"
            f" {tolerated} tolerated colluders",
            got=str(contributors),
            remedy="Tolerate fewer, raise quorum and sample, let more take part, or"
            " attest all workers.",
        )
    return tolerated
