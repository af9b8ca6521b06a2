"""The plan: the one file everybody agrees on, known by its hash.

Nothing in it is about a machine; that is the site file's business. The hash covers the
canonical form of every value, defaults included, so two spellings of one plan are one
plan and no setting can change unseen.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal, NewType

import cbor2
import msgspec
from msgspec import Meta

from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.keys import parse_party_key
from cloister.plan.toml import parse_toml, read_toml

PlanHash = NewType("PlanHash", bytes)  # SHA-256, 32 bytes
Role = Literal["server", "worker"]

_HASH_LABEL = "cloister/plan/1"
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}")

# Patterns end with \Z: a $ would let a line break through at the end.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
RunId = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}/[a-z0-9][a-z0-9-]{0,31}\Z")
]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
Option = bool | int | float | str


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[plan]``: the file's format and the run's identity."""

    format: Literal[1]
    name: Name
    run: Name


class TaskSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[task]``: which class of which file trains, with which options."""

    file: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\.py\Z")]
    class_: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")] = (
        msgspec.field(name="class")
    )
    options: dict[str, Option] = {}


class Optimizer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``optimizer``: how the server turns a mean gradient into a step."""

    name: Literal["sgd"]
    learning_rate: Rate
    momentum: Fraction = 0.0
    weight_decay: Fraction = 0.0


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``schedule``: how the learning rate changes over the rounds."""

    name: Literal["constant", "cosine"]
    warmup_rounds: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0


class Training(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[training]``: everything that decides the bits of the result."""

    mode: Literal["sync-sgd"]
    rounds: Count
    batch_size: Count
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    optimizer: Optimizer
    schedule: Schedule
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1


class Rounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[rounds]``: who must contribute, and how often the model is evaluated."""

    quorum: Literal["all"] = "all"
    evaluate_every: Count = 50


class Party(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[[party]]``: one participant, its role and its custodian's key."""

    name: Name
    role: Role
    key: str
    admit: Literal["attested"] = "attested"
    data: Digest | None = None

    def __post_init__(self) -> None:
        parse_party_key(self.key)
        if (self.data is not None) != (self.role == "worker"):
            raise ConfigError(
                f"party {self.name!r} and its data do not fit",
                code="party-data",
                expected="'data' for every worker and for no server",
                got=f"role {self.role!r} {'with' if self.data else 'without'} data",
            )


class Policies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[policy.ROLE]``: what a node of each role must prove to be."""

    server: Policy
    worker: Policy


class ModelSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[model]``: who may open the result, as age recipients."""

    recipients: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]

    def __post_init__(self) -> None:
        for recipient in self.recipients:
            if not _RECIPIENT.fullmatch(recipient):
                raise ConfigError(
                    "a model recipient is malformed",
                    code="recipient-invalid",
                    expected="an age X25519 recipient, 'age1' and 58 characters",
                    got=repr(recipient[:80]),
                )


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole plan; one plan is one run."""

    plan: Header
    task: TaskSection
    training: Training
    party: tuple[Party, ...]
    policy: Policies
    model: ModelSection
    rounds: Rounds = Rounds()

    def __post_init__(self) -> None:
        _check_parties(self.party)
        if self.policy.server.root != self.policy.worker.root:
            raise ConfigError(
                "the plan mixes trust roots",
                code="roots-mixed",
                expected="one root for all roles",
                got=f"{self.policy.server.root} and {self.policy.worker.root}",
            )
        if self.training.schedule.warmup_rounds > self.training.rounds:
            raise ConfigError(
                "the warm-up is longer than the training",
                code="warmup-too-long",
                expected=f"at most {self.training.rounds} warm-up rounds",
                got=str(self.training.schedule.warmup_rounds),
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
        """Returns what a node of `role` must prove."""
        return self.policy.server if role == "server" else self.policy.worker


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


def _check_parties(parties: tuple[Party, ...]) -> None:
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
