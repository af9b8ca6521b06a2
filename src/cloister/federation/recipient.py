"""The recipient node: opens the sealed model with a key that its custodian released.

It meets its own custodian and nobody else. The key and the model stay in its memory;
nothing is written. What it does not do: prove where the model came from. The seal keeps
it secret, and whoever knows a recipient can seal to it; the run's audit says which
model the server sealed (`storage.model_vault`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.errors import VerificationError
from cloister.federation.layout import ModelBuffer
from cloister.federation.task import Evaluation, LearnerSettings, Task
from cloister.federation.task_loading import task_code
from cloister.ratls.node import Node
from cloister.storage.keys import KeySource, Secret
from cloister.storage.model_vault import OpenedModel, open_model
from cloister.storage.records import DataSource


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
    sealed: Path,
    keys: KeySource,
    source: DataSource | None,
    log: FilteringBoundLogger,
) -> ReceivedModel:
    """Opens the model of the node's plan, and evaluates it where the plan says so.

    1. The model opens with the node's key.
    2. It says that it is of this run, this plan and all of its rounds.
    3. Its arrays are the task's.
    4. It is evaluated, if the plan pins records for this party.

    Args:
        node: The recipient's node; its custodian has warranted it.
        task: The plan's task.
        sealed: The sealed model.
        keys: Has the node's vault key.
        source: The party's records, those that the plan pins; None where it pins
            none.
        log: One line for the model, and one for its evaluation.

    Raises:
        VerificationError: If it is another run's model (``model-foreign``).
        StorageError: If it is not sealed to this key, was altered, or its arrays are
            not the task's; see `open_model`.
        ConfigError: If there is no model or no key, or the task fails.
    """
    if (source is None) != (node.plan.find_party(node.party).data is None):
        raise RuntimeError("a recipient evaluates exactly when the plan pins its data")
    # In one thread, for frameworks keep state by thread; an interruption is heard.
    received = await asyncio.to_thread(
        _receive, node, task, sealed, keys.key("vault"), source
    )
    log.info(
        "model-opened",
        rounds=node.plan.training.rounds,
        size_bytes=received.model.layout.size_bytes,
        simulated=node.plan.simulated,
    )
    if received.evaluation is not None:
        # The host reads this. All parties agreed to it, and to the very records: of
        # the host's own choice they would show it the model, answer by answer.
        log.info(
            "model-evaluated",
            examples=received.evaluation.examples,
            metrics=_means(received.evaluation),
        )
    return received


def _receive(
    node: Node, task: Task, sealed: Path, key: Secret, source: DataSource | None
) -> ReceivedModel:
    # Steps 1, 2
    # Not ASCII: refused as no identity, in words that show nothing of it.
    identity = key.reveal().decode("ascii", errors="replace")
    opened = _check_metadata(open_model(sealed, identity=identity), node)
    plan = node.plan
    # Step 3
    with task_code(plan.task.file, "loading the model", simulated=plan.simulated):
        model = task.load_exported(opened.arrays)
    # Step 4
    evaluation = None if source is None else _evaluate(node, task, model, source)
    return ReceivedModel(model=model, metadata=opened.metadata, evaluation=evaluation)


def _check_metadata(opened: OpenedModel, node: Node) -> OpenedModel:
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
    return opened


def _evaluate(
    node: Node, task: Task, model: ModelBuffer, source: DataSource
) -> Evaluation:
    training, simulated = node.plan.training, node.plan.simulated
    settings = LearnerSettings(
        party=node.party,
        batch_size=training.batch_size,
        seed=training.seed,
        threads=training.threads,
        precision=training.precision,
    )
    with task_code(node.plan.task.file, "evaluating", simulated=simulated):
        learner = task.learner(source, settings)
        learner.load(model)
        return learner.evaluate()


def _means(evaluation: Evaluation) -> dict[str, float]:
    return {
        name: value / max(evaluation.examples, 1)
        for name, value in evaluation.sums.items()
    }
