"""The plan's sections, table by table; their order is the file's.

Rules that take one section alone stand here, rules between sections in `plan.plan`.
Every key is part of the plan's hash, so a new one changes all hashes.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.digest import Digest

MAX_RECIPIENTS: Final = 64
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}")

# Patterns end with \Z: a $ would let a line break through at the end.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
RunId = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}/[a-z0-9][a-z0-9-]{0,31}\Z")
]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Meta(gt=0, le=1e6)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
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
    # How many parties may pool what they know; stated where a worker is not attested.
    tolerated_colluders: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


class Admission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[admission]``: how long a worker stays admitted; then it proves itself again.

    Attributes:
        life_seconds: By the clock, which is the host's. Clocks may differ by ten
            minutes, so much less than an hour would be over before it is renewed.
        rounds: By the rounds since, which the host cannot hold back.
        custodian_silence_seconds: How long a node trains on without having brought its
            mark to its party's custodian.
    """

    life_seconds: Annotated[int, Meta(ge=1800, le=604_800)] = 43_200
    rounds: Count = 100_000
    custodian_silence_seconds: Annotated[int, Meta(ge=60, le=604_800)] = 3600


class Predecessor(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[predecessor]``: whose run this plan takes over, and from where.

    Attributes:
        plan: The hash of the plan before it.
        state: SHA-256 of the state that the run goes on from.
        round: Rounds completed in that state; 0 where none was yet.
    """

    plan: Digest
    state: Digest
    round: Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Policies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[policy.ROLE]``: what a node of each role must prove to be."""

    server: Policy
    worker: Policy | None = None  # none where no worker is attested
    recipient: Policy | None = None  # none where the plan has no such party


class ModelSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[model]``: who may open the result, as age recipients.

    Attested recipients are parties and stand there.
    """

    recipients: Annotated[tuple[str, ...], Meta(max_length=MAX_RECIPIENTS)] = ()

    def __post_init__(self) -> None:
        for recipient in self.recipients:
            check_recipient(recipient)


def check_recipient(recipient: str) -> str:
    """Returns an age recipient, if it looks like one.

    Raises:
        ConfigError: If it does not.
    """
    if not _RECIPIENT.fullmatch(recipient):
        raise ConfigError(
            "a model recipient is malformed",
            code="recipient-invalid",
            expected="an age X25519 recipient, 'age1' and 58 characters",
            # Not the text: an identity put here by mistake is a secret.
            got=f"{len(recipient)} characters of another form",
            remedy="`age-keygen -y` prints the recipient of an identity.",
        )
    return recipient
