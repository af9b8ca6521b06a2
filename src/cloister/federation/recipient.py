"""The recipient node: opens the sealed model with a key that its custodian released.

It meets its own custodian and nobody else. The key and the model stay in its memory;
nothing is written. The seal keeps a model secret and does not say where it came from:
whoever knows a recipient can seal to it. So a model meets the party's records only if
the run's audit log names it (`SealedCopy`). A host that could put a model of its own
in its place would read the records off the metrics, model by model.

What it predicts is in `federation.predictions`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.errors import VerificationError
from cloister.federation.held_out import HeldOut
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import Evaluation, Learner, LearnerSettings, Task
from cloister.federation.task_loading import task_code
from cloister.ratls.node import Node
from cloister.storage.keys import KeySource, Secret
from cloister.storage.model_vault import OpenedModel, open_model
from cloister.storage.records import DataSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedCopy:
    """A sealed model as a host gives it.

    Attributes:
        path: Where it lies.
        recorded: SHA-256 (hex) of the sealed model that the run's verified audit log
            names; None where the model is to meet no records.
    """

    path: Path
    recorded: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedModel:
    """A model in the memory of the node that may use it.

    Attributes:
        model: Its values, as the task lays them out.
        metadata: What the server said of it.
        evaluation: On the held-out ones of the records that the plan pins; None
            where it pins none.
    """

    model: ModelBuffer = field(repr=False)
    metadata: dict[str, str]
    evaluation: Evaluation | None


async def receive_model(
    node: Node,
    task: Task,
    *,
    sealed: SealedCopy,
    keys: KeySource,
    source: DataSource | None,
    log: FilteringBoundLogger,
) -> ReceivedModel:
    """Opens the model of the node's plan, and evaluates it where the plan says so.

    1. The model opens with the node's key.
    2. It is the one that the run's audit log names, if it is to meet records.
    3. It says that it is of this run, this plan and all of its rounds.
    4. Its arrays are the task's.
    5. It is evaluated, if the plan pins records for this party.

    Args:
        node: The recipient's node; its custodian has warranted it.
        task: The plan's task.
        sealed: The sealed model.
        keys: Has the node's vault key.
        source: The party's records, those that the plan pins; None where it pins
            none.
        log: One line for the model, and one for its evaluation.

    Raises:
        VerificationError: If it is not the run's model (``audit-model``,
            ``model-foreign``).
        StorageError: If it is not sealed to this key, was altered, or its arrays are
            not the task's, see `open_model`; or if there are no held-out records.
        ConfigError: If there is no model or no key, or the task fails.
    """
    if (source is None) != (node.plan.find_party(node.party).data is None):
        raise RuntimeError("a recipient evaluates exactly when the plan pins its data")
    if source is not None and sealed.recorded is None:
        raise RuntimeError("a model meets records only if the run's log names it")
    # In one thread, for frameworks keep state by thread; an interruption is heard.
    received = await asyncio.to_thread(
        _receive, node, task, sealed, keys.key("vault"), source
    )
    log_opened(node, received.model, log=log)
    if received.evaluation is not None:
        # The host reads this. All parties agreed to it, and to the very records: of
        # the host's own choice they would show it the model, answer by answer.
        log.info(
            "model-evaluated",
            examples=received.evaluation.examples,
            metrics=means_of(received.evaluation),
        )
    return received


def load_model(
    node: Node, task: Task, sealed: SealedCopy, key: Secret
) -> tuple[ModelBuffer, OpenedModel]:
    """Returns the model as the task lays it out, and as it was opened.

    Steps 1 to 4 of `receive_model`; belongs in the thread that goes on with it.

    Raises:
        CloisterError: See `receive_model`.
    """
    # Step 1
    # Not ASCII: refused as no identity, in words that show nothing of it.
    identity = key.reveal().decode("ascii", errors="replace")
    opened = open_model(sealed.path, identity=identity)
    # Steps 2, 3
    _check_recorded(opened, sealed)
    _check_metadata(opened, node)
    # Step 4
    plan = node.plan
    with task_code(plan.task.file, "loading the model", simulated=plan.simulated):
        return task.load_exported(opened.arrays), opened


def make_learner(
    node: Node, task: Task, model: ModelBuffer, source: DataSource
) -> Learner:
    """Returns a learner at work on held-out records, with the model loaded.

    Raises:
        StorageError: If there are no held-out records (``data-empty``).
        ConfigError: If the task fails.
    """
    training, simulated = node.plan.training, node.plan.simulated
    settings = LearnerSettings(
        party=node.party,
        batch_size=training.batch_size,
        seed=training.seed,
        threads=training.threads,
        precision=training.precision,
    )
    with task_code(node.plan.task.file, "opening the data", simulated=simulated):
        learner = task.learner(HeldOut(source), settings)
        learner.load(model)
        return learner


def log_opened(node: Node, model: ModelBuffer, *, log: FilteringBoundLogger) -> None:
    """Says in the log that the model is open in this node."""
    log.info(
        "model-opened",
        rounds=node.plan.training.rounds,
        size_bytes=model.layout.size_bytes,
        simulated=node.plan.simulated,
    )


def means_of(evaluation: Evaluation) -> dict[str, float]:
    """Returns each metric's mean over the examples."""
    return {
        name: value / max(evaluation.examples, 1)
        for name, value in evaluation.sums.items()
    }


def _receive(
    node: Node, task: Task, sealed: SealedCopy, key: Secret, source: DataSource | None
) -> ReceivedModel:
    # Steps 1 to 4
    model, opened = load_model(node, task, sealed, key)
    # Step 5
    evaluation = None
    if source is not None:
        plan = node.plan
        learner = make_learner(node, task, model, source)
        with task_code(plan.task.file, "evaluating", simulated=plan.simulated):
            evaluation = learner.evaluate()
    return ReceivedModel(model=model, metadata=opened.metadata, evaluation=evaluation)


def _check_recorded(opened: OpenedModel, sealed: SealedCopy) -> None:
    """Refuses a model that somebody else sealed to this recipient."""
    if sealed.recorded is not None and opened.sha256 != sealed.recorded:
        raise VerificationError(
            f"the sealed model {sealed.path} is not the one in the run's log",
            code="audit-model",
            expected=f"SHA-256 {sealed.recorded}",
            got=opened.sha256,
            remedy="Give the model and the audit log of one run.",
        )


def _check_metadata(opened: OpenedModel, node: Node) -> None:
    """Refuses another run's model, which the host might give in place of this one."""
    plan = node.plan
    for name, wanted in (
        ("run", plan.run_id),
        ("plan", node.plan_hash.hex()),
        ("rounds", str(plan.training.rounds)),
        ("simulated", str(plan.simulated).lower()),
    ):
        got = opened.metadata.get(name)
        if got != wanted:
            raise VerificationError(
                f"the sealed model's {name!r} is not the plan's",
                code="model-foreign",
                expected=wanted,
                got="none" if got is None else repr(got[:80]),
                remedy="Give the plan and the model of one run.",
            )
