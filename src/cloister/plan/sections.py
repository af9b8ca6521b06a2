"""The plan's sections, table by table; their order is the file's.

``[training]`` is in `plan.training`. Rules that take one section alone stand here,
rules between sections in `plan.plan`, `plan.parties` and `plan.seats`. Every key is
part of the plan's hash, so a new one changes all hashes.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cloister.attestation.policy import Policy
from cloister.errors import ConfigError
from cloister.plan.digest import Digest
from cloister.plan.training import Training
from cloister.plan.values import ClassName, Count, FileName, Name, Option, RunId

__all__ = [
    "MAX_RECIPIENTS",
    "Admission",
    "Header",
    "ModelSection",
    "Name",
    "Policies",
    "Predecessor",
    "Rounds",
    "RunId",
    "TaskSection",
    "Training",
    "check_recipient",
]

MAX_RECIPIENTS: Final = 64
_RECIPIENT = re.compile(r"age1[02-9ac-hj-np-z]{58}")

Quorum = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[plan]``: the file's format and the run's identity."""

    format: Literal[1]
    name: Name
    run: Name


class TaskSection(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """``[task]``: which class of which file trains, with which options."""

    file: FileName
    class_: ClassName = msgspec.field(name="class")
    options: dict[str, Option] = {}


class Rounds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``[rounds]``: who must contribute; how often the model is evaluated, and kept.

    Attributes:
        quorum: How many of those with a seat must have contributed when the deadline
            passes. With ``all`` nobody is ever left out.
        deadline_seconds: From a round's beginning; then it ends with who came.
        sample: How many workers have a seat in a round; None: all of them.
        evaluate_every: Rounds between evaluations.
        tolerated_colluders: How many parties may pool what they know; stated where a
            worker is not attested.
        mirror_every: The server keeps its state on its disk after each round whose
            number this divides. What was trained since is trained again after a crash.
    """

    quorum: Literal["all"] | Quorum = "all"
    deadline_seconds: Annotated[int, Meta(ge=1, le=604_800)] | None = None
    sample: Count | None = None
    evaluate_every: Count = 50
    tolerated_colluders: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    mirror_every: Count = 1

    def __post_init__(self) -> None:
        _check_deadline(self)
        _check_mirror(self)


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

    Attributes:
        recipients: Age recipients.
        graph: The worker whose node seals the network's structure to the same; None
            where nobody does.
    """

    recipients: Annotated[tuple[str, ...], Meta(max_length=MAX_RECIPIENTS)] = ()
    graph: Name | None = None

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


def _check_deadline(rounds: Rounds) -> None:
    """Refuses a quorum that no round could end with, and a deadline without one."""
    if isinstance(rounds.quorum, int) == (rounds.deadline_seconds is not None):
        return
    missing = rounds.deadline_seconds is None
    raise ConfigError(
        "the plan does not say how long a round waits for more than its quorum"
        if missing
        else "a deadline would be ignored",
        code="deadline-missing" if missing else "deadline-unused",
        expected="[rounds] deadline_seconds with a number as quorum, and with no other",
        got=f"quorum = {rounds.quorum!r}"
        f" {'without' if missing else 'with'} deadline_seconds",
        remedy="With quorum = 'all' every round waits for everybody with a seat.",
    )


def _check_mirror(rounds: Rounds) -> None:
    """Refuses to train rounds again where it is not the plan that says who is counted.

    With a number as quorum another cohort may come in time the second time, and the
    round would have two results.
    """
    if rounds.quorum == "all" or rounds.mirror_every == 1:
        return
    raise ConfigError(
        "rounds that somebody may miss would be trained again with others",
        code="mirror-interval",
        expected="[rounds] mirror_every = 1 with a number as quorum",
        got=f"quorum = {rounds.quorum!r} with mirror_every = {rounds.mirror_every}",
        remedy="Leave mirror_every out: the state is kept after every round then.",
    )
