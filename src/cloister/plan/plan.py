"""The plan: the one file everybody agrees on, known by its hash.

Nothing in it is about a machine; that is the site file's business. The hash covers the
canonical form of every value, defaults included, so two spellings of one plan are one
plan and no setting can change unseen. Its sections are in `plan.sections` and
`plan.parties`; here stands what holds between them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NewType

import cbor2
import msgspec

from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.parties import Party, Role, check_colluders, check_parties
from cloister.plan.policies import check_policies
from cloister.plan.seats import check_seats
from cloister.plan.sections import (
    MAX_RECIPIENTS,
    Admission,
    Header,
    ModelSection,
    Name,
    Policies,
    Predecessor,
    Rounds,
    RunId,
    TaskSection,
    Training,
)
from cloister.plan.toml import parse_toml, read_toml

__all__ = [
    "Admission",
    "Name",
    "Party",
    "Plan",
    "PlanHash",
    "Policies",
    "Predecessor",
    "Role",
    "RunId",
    "parse_plan",
    "plan_hash",
    "read_plan",
]

PlanHash = NewType("PlanHash", bytes)  # SHA-256, 32 bytes

_HASH_LABEL = "cloister/plan/6"


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole plan; one plan is one run."""

    plan: Header
    task: TaskSection
    training: Training
    party: tuple[Party, ...]
    policy: Policies
    model: ModelSection = ModelSection()
    rounds: Rounds = Rounds()
    admission: Admission = Admission()
    predecessor: Predecessor | None = None

    def __post_init__(self) -> None:
        check_parties(self.party)
        check_seats(self.rounds, self.training.mode, workers=self.workers)
        check_colluders(
            self.party,
            self.rounds.tolerated_colluders,
            contributors=self.least_contributors,
        )
        check_policies(self.policy, self.party)
        _check_recipients(self.recipients)
        _check_own_strategy(self)
        _check_sealed(self)
        _check_graph(self)
        if (
            self.predecessor is not None
            and self.predecessor.round > self.training.rounds
        ):
            raise ConfigError(
                "the plan goes on from a round that it does not have",
                code="predecessor-round",
                expected=f"at most {self.training.rounds}",
                got=str(self.predecessor.round),
            )

    @property
    def run_id(self) -> str:
        """Name and run together; unique in the world of these parties."""
        return f"{self.plan.name}/{self.plan.run}"

    @property
    def server(self) -> Party:
        """The party whose node aggregates."""
        return next(p for p in self.party if p.role == "server")

    @property
    def workers(self) -> tuple[Party, ...]:
        """The parties whose nodes train, in plan order."""
        return tuple(p for p in self.party if p.role == "worker")

    @property
    def seats(self) -> int:
        """How many workers take part in a round at most."""
        return self.rounds.sample or len(self.workers)

    @property
    def least_contributors(self) -> int:
        """How many updates every round's mean is of, at least."""
        quorum = self.rounds.quorum
        return quorum if isinstance(quorum, int) else self.seats

    @property
    def source_files(self) -> tuple[str, ...]:
        """What every node measures: the task's file, and the own strategy's if any."""
        own = self.training.own_strategy
        return (self.task.file,) if own is None else (self.task.file, own.file)

    @property
    def shareholders(self) -> tuple[Party, ...]:
        """The parties whose custodians hold shares of state keys, in plan order."""
        return tuple(p for p in self.party if p.state_share is not None)

    @property
    def recipients(self) -> tuple[str, ...]:
        """Everybody to whom the model is sealed, as age recipients."""
        attested = (p.recipient for p in self.party if p.recipient is not None)
        return (*self.model.recipients, *attested)

    @property
    def simulated(self) -> bool:
        """Whether evidence under this plan comes from a simulated platform."""
        return self.policy.server.root != "hardware"

    def find_party(self, name: str) -> Party:
        """Returns the party called `name`.

        Raises:
            ConfigError: If the plan has none.
        """
        for party in self.party:
            if party.name == name:
                return party
        raise ConfigError(
            f"the plan has no party {name!r}",
            code="party-unknown",
            expected=f"one of {', '.join(p.name for p in self.party)}",
        )

    def policy_for(self, role: Role) -> Policy:
        """Returns what every attested node of `role` must prove.

        A node is some party's, and that party's machines may be named: it is judged
        by `policy_of`.

        Raises:
            ConfigError: If the plan has none: nobody of that role is attested.
        """
        policy: Policy | None = getattr(self.policy, role)
        if policy is None:
            raise ConfigError(
                f"the plan has no policy for {role}s: none of them is attested",
                code="policy-missing",
                expected=f"a plan with an attested {role}",
            )
        return policy

    def policy_of(self, name: str) -> Policy:
        """Returns what the node of a party must prove: its role's, on its machines.

        Without the machines, whoever owns one of that kind could run the very same
        code on it under the party's name.

        Raises:
            ConfigError: If the plan has no such party, or asks no evidence of it.
        """
        party = self.find_party(name)
        if party.admit != "attested":
            raise ConfigError(
                f"the plan asks no evidence of {name!r}",
                code="policy-missing",
                expected="a party that is attested",
                got=f"admit = {party.admit!r}",
            )
        policy = self.policy_for(party.role)
        if party.platforms is None:
            return policy
        return msgspec.structs.replace(policy, platforms=party.platforms)

    @property
    def unpinned(self) -> tuple[Party, ...]:
        """Attested parties whose nodes may run on anybody's machine."""
        return tuple(
            party
            for party in self.party
            if party.admit == "attested"
            and not isinstance(self.policy_of(party.name).platforms, tuple)
        )


def read_plan(path: Path) -> Plan:
    """Returns the plan in the file at `path`.

    Raises:
        ConfigError: If the file is missing or any value does not fit.
    """
    return read_toml(path, Plan, what="plan")


def parse_plan(text: bytes) -> Plan:
    """Returns the plan in `text`.

    Raises:
        ConfigError: If any value does not fit.
    """
    return parse_toml(text, Plan, what="plan")


def plan_hash(plan: Plan) -> PlanHash:
    """Returns the SHA-256 of the plan's canonical CBOR form (RFC 8949, 4.2)."""
    form = [_HASH_LABEL, msgspec.to_builtins(plan)]
    return PlanHash(hashlib.sha256(cbor2.dumps(form, canonical=True)).digest())


def _check_recipients(recipients: tuple[str, ...]) -> None:
    """Refuses a model that nobody could open, and one sealed twice to one."""
    if not 1 <= len(recipients) <= MAX_RECIPIENTS:
        raise ConfigError(
            "the model is not sealed to anybody"
            if not recipients
            else "the model is sealed to too many",
            code="recipients-number",
            expected=f"1 to {MAX_RECIPIENTS}, in [model] recipients or as a [[party]]"
            " with role = 'recipient'",
            got=str(len(recipients)),
        )
    if len(set(recipients)) < len(recipients):
        raise ConfigError(
            "the model is sealed twice to one recipient",
            code="recipients-repeat",
            expected="every recipient once, in [model] recipients and all parties",
            got=", ".join(sorted({r for r in recipients if recipients.count(r) > 1})),
        )


def _check_own_strategy(plan: Plan) -> None:
    """Refuses one file for both: workers compile the task's, and never the other."""
    own = plan.training.own_strategy
    if own is not None and own.file == plan.task.file:
        raise ConfigError(
            "the plan's own strategy lies in the task's file",
            code="optimizer-invalid",
            expected="a file of its own",
            got=own.file,
        )


def _check_sealed(plan: Plan) -> None:
    """Refuses records that would lie open to a host that is not trusted with them.

    Where evidence is simulated nothing is confidential, and a worker by identity is its
    owner's own machine.
    """
    if plan.simulated:
        return
    for party in plan.party:
        attested = party.admit == "attested" and party.data is not None
        if attested and party.data_key is None:
            raise ConfigError(
                f"the data of {party.name!r} would lie in the clear on its host",
                code="party-data-unsealed",
                expected="'data_key' for every attested party with data",
                got="none",
                remedy="`cloister data seal` seals it, and prints what the plan needs.",
            )


def _check_graph(plan: Plan) -> None:
    graph = plan.model.graph
    if graph is None or any(graph == party.name for party in plan.workers):
        return
    raise ConfigError(
        "nobody can seal the model's graph",
        code="graph-party",
        expected=f"[model] graph one of {', '.join(p.name for p in plan.workers)}",
        got=repr(graph),
    )
