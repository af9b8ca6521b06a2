"""What a recipient's node predicts on records that its party sealed.

Predictions leave the node in one way: sealed to whom the plan names for this party
(``predictions_to``). In the log stand counts. So the host, which decides when a node
runs and which of the party's data sets it is given, learns how many records those have
and nothing else.

What this module does not do: say whose records they are. `storage.sealed_data` does;
the caller has compared owner and key with the plan.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from structlog.typing import FilteringBoundLogger

from cloister.errors import ConfigError
from cloister.federation.layout import ModelBuffer
from cloister.federation.recipient import (
    SealedCopy,
    load_model,
    log_opened,
    make_learner,
)
from cloister.federation.task import PredictingLearner, Task
from cloister.federation.task_loading import task_code
from cloister.ratls.node import Node
from cloister.storage.keys import KeySource, Secret
from cloister.storage.model_vault import Arrays, SealedModel, seal_model
from cloister.storage.sealed_data_set import SealedDataSet

# What safetensors and every reader of it have: booleans, integers, floats.
_KINDS: Final = "biuf"
_MAX_ITEM_BYTES: Final = 8


async def seal_predictions(  # noqa: PLR0913 - a model, records, and where to
    node: Node,
    task: Task,
    *,
    sealed: SealedCopy,
    keys: KeySource,
    source: SealedDataSet,
    path: Path,
    log: FilteringBoundLogger,
) -> SealedModel:
    """Predicts on the held-out records of `source`, and seals what comes of it.

    1. The model opens, and is the run's: steps 1 to 4 of `receive_model`.
    2. The task predicts, one row a record, in the records' order.
    3. The rows are sealed to the plan's ``predictions_to`` of this party, with run,
       plan, model and data set beside them; written whole or not at all.

    All predictions are in memory at once, and so is their ciphertext.

    Args:
        node: The recipient's node; its custodian has warranted it.
        task: The plan's task.
        sealed: The sealed model; the run's audit log names it.
        keys: Has the node's vault key.
        source: Records that the node's party sealed under its data key.
        path: Where the sealed predictions go.
        log: One line for the model, and one for the predictions.

    Raises:
        VerificationError: If it is not the run's model.
        StorageError: If model or records do not open, there are no held-out records,
            or the predictions cannot be written. Nothing is written then.
        ConfigError: If the task predicts nothing, or not one row a record
            (``task-predict``); or if there is no key.
    """
    to = node.plan.find_party(node.party).predictions_to
    if to is None or sealed.recorded is None:
        raise RuntimeError(
            "a node predicts where the plan says so, with the run's model"
        )
    # In one thread, for frameworks keep state by thread; an interruption is heard, and
    # then nothing is written.
    model, arrays = await asyncio.to_thread(
        _predict, node, task, sealed, keys.key("vault"), source
    )
    log_opened(node, model, log=log)
    records = len(source.split("held-out"))
    written = seal_model(
        arrays,
        metadata={
            "run": node.plan.run_id,
            "plan": node.plan_hash.hex(),
            "model": sealed.recorded,
            "data": source.digest,
            "records": str(records),
            "simulated": str(node.plan.simulated).lower(),
        },
        recipients=(to,),
        path=path,
    )
    log.info(
        "predictions-sealed",
        records=records,
        data=source.digest,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
    )
    return written


def join_predictions(
    items: Iterable[Mapping[str, NDArray[np.generic]]], *, records: int
) -> Arrays:
    """Returns what a learner predicted, each array by name: (records, ...).

    Args:
        items: What `PredictingLearner.predict` yields.
        records: How many records there are.

    Raises:
        ConfigError: If names, types or shapes change from item to item, if there is
            not one row a record, or if an array is none of booleans, integers or
            floats of at most 8 bytes (``task-predict``).
    """
    pieces: dict[str, list[NDArray[np.generic]]] = {}
    forms: dict[str, str] | None = None
    rows = 0
    for item in items:
        arrays = {name: np.asarray(array) for name, array in item.items()}
        found = _forms_of(arrays)
        if forms is None:
            forms = found
        if found != forms:
            raise _unusable("the same arrays for all records", got=_listed(found))
        counts = {len(array) for array in arrays.values()}
        if len(counts) != 1:
            raise _unusable("one row a record in every array", got=f"{counts} rows")
        rows += counts.pop()
        for name, array in arrays.items():
            # A copy: a learner may use its memory for the next records.
            pieces.setdefault(name, []).append(np.array(array))
    if rows != records:
        raise _unusable(f"{records} rows, one a record", got=str(rows))
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


def _predict(
    node: Node, task: Task, sealed: SealedCopy, key: Secret, source: SealedDataSet
) -> tuple[ModelBuffer, Arrays]:
    # Step 1
    model, _ = load_model(node, task, sealed, key)
    # Step 2
    plan = node.plan
    learner = make_learner(node, task, model, source)
    with task_code(plan.task.file, "predicting", simulated=plan.simulated):
        if not isinstance(learner, PredictingLearner):
            raise ConfigError(
                f"the task in {plan.task.file} predicts nothing",
                code="task-predict",
                expected="a learner with the method predict",
                got=type(learner).__name__,
                remedy="Give the task's learner predict(), and have all parties sign.",
            )
        records = len(source.split("held-out"))
        return model, join_predictions(learner.predict(), records=records)


def _forms_of(arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    """Returns type and shape of a row by name, after checking that they can be kept."""
    if not arrays:
        raise _unusable("at least one array", got="none")
    for name, array in arrays.items():
        kind, size = array.dtype.kind, array.dtype.itemsize
        if not array.ndim or kind not in _KINDS or size > _MAX_ITEM_BYTES:
            raise _unusable(
                "arrays of booleans, integers or floats, one row a record",
                got=f"{name}: {array.dtype} of {array.ndim} dimensions",
            )
    return {name: f"{a.dtype}{[*a.shape[1:]]}" for name, a in arrays.items()}


def _listed(forms: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {form}" for name, form in forms.items())


def _unusable(expected: str, *, got: str) -> ConfigError:
    return ConfigError(
        "the task's predictions cannot be used",
        code="task-predict",
        expected=expected,
        got=got,
        remedy="Mend the learner's predict(); every party then measures it anew.",
    )
