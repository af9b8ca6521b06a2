"""The end of a run: the model is sealed, and the audit log's last head is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError
from cloister.federation.audit import RoundAudit
from cloister.federation.audit_log import AuditLog
from cloister.federation.custodian import Custodian
from cloister.federation.layout import ModelBuffer
from cloister.federation.marks import server_mark
from cloister.federation.published import Ending
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.ratls.node import Node
from cloister.storage.model_vault import SealedModel, seal_model

# For the log's last head, when everything else is over.
_LAST_DEPOSIT_SECONDS = 30.0


async def seal_and_record(  # noqa: PLR0913 - all that a model is sealed with
    node: Node,
    task: Task,
    model: ModelBuffer,
    *,
    metrics: dict[str, float],
    ending: Ending,
    path: Path,
    audit: AuditLog,
    log: FilteringBoundLogger,
) -> SealedModel:
    """Seals the final model to the plan's recipients, and records that it is.

    Once begun it goes on to its end, also when it is cancelled: the thread that seals
    cannot be stopped, and a model that lies there must be in the log.

    Args:
        node: The server's node.
        task: The plan's task.
        model: The final model.
        metrics: Its metrics.
        ending: How training ended.
        path: Where the sealed model goes.
        audit: The run's audit log.
        log: One line for the sealed model.

    Raises:
        CloisterError: If the task cannot export it, or it or the record cannot be
            written.
        CancelledError: If it was cancelled meanwhile; the model is sealed then, and
            recorded.
    """
    sealing = asyncio.ensure_future(
        asyncio.to_thread(_seal, node, task, model, metrics=metrics, path=path)
    )
    cancelled = await _to_its_end(sealing)
    sealed = sealing.result()
    audit.model_sealed(sealed, rounds=node.plan.training.rounds, ending=ending)
    log.info(
        "model-sealed",
        size_bytes=sealed.size_bytes,
        sha256=sealed.sha256,
        audit_head=audit.head.hex(),
    )
    if cancelled is not None:
        raise cancelled
    return sealed


async def _to_its_end(work: asyncio.Future[SealedModel]) -> BaseException | None:
    """Waits until `work` is done; returns the cancellation that came meanwhile."""
    cancelled = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def deposit_last_head(
    node: Node,
    custodian: Custodian,
    *,
    ending: Ending,
    audit: RoundAudit,
    log: FilteringBoundLogger,
) -> None:
    """Has the party keep the head of a log to which nothing is added any more.

    Without it the log's last records could be cut away unseen; the model is sealed all
    the same.
    """
    if ending.model.state is None:
        raise RuntimeError("the final model states its state")
    mark = server_mark(
        node,
        completed=ending.model.round - 1,
        state=ending.model.state,
        audit_head=audit.head,
    )
    try:
        async with asyncio.timeout(_LAST_DEPOSIT_SECONDS):
            await custodian.deposit(mark)
    except TimeoutError:
        code = "custodian-silent"
        reason = f"no answer in {_LAST_DEPOSIT_SECONDS:g} s"
    except CloisterError as error:
        code, reason = error.code, str(error)
    else:
        return
    log.warning("audit-head-not-deposited", code=code, reason=reason)


def _seal(
    node: Node,
    task: Task,
    model: ModelBuffer,
    *,
    metrics: dict[str, float],
    path: Path,
) -> SealedModel:
    plan = node.plan
    with task_code(plan.task.file, "exporting the model", simulated=plan.simulated):
        arrays = task.export(model)
    return seal_model(
        arrays,
        metadata={
            "run": plan.run_id,
            "plan": node.plan_hash.hex(),
            "rounds": str(plan.training.rounds),
            "simulated": str(plan.simulated).lower(),
            **{f"metric.{name}": repr(value) for name, value in metrics.items()},
        },
        recipients=plan.recipients,
        path=path,
    )
