"""The end of a run: the model is sealed, or it ends early; the last head is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from cloister.errors import CloisterError, StorageError
from cloister.federation.audit import RoundAudit
from cloister.federation.audit_log import AuditLog
from cloister.federation.custodian import Custodian
from cloister.federation.layout import ModelBuffer
from cloister.federation.marks import server_mark
from cloister.federation.published import Ending
from cloister.federation.task import Task
from cloister.federation.task_loading import task_code
from cloister.ratls.mark import Mark
from cloister.ratls.node import Node
from cloister.ratls.unforeseen import unforeseen
from cloister.storage.mirror.subject import Kept
from cloister.storage.model_vault import SealedModel, seal_model

# For the log's last head, when everything else is over.
_LAST_DEPOSIT_SECONDS = 30.0
# For the newest state of a run that ends early: its operator waits.
_EARLY_DEPOSIT_SECONDS = 5.0
_SILENT = "custodian-silent"


class Resting(Protocol):
    """A run that has failed; `Progress` is one."""

    async def rest(self) -> Kept:
        """Returns its newest durable state.

        Raises:
            StorageError: If the state of its last round cannot be kept.
        """
        ...


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
        audit_head=audit.durable_head,
    )
    await _deposit(custodian, mark, seconds=_LAST_DEPOSIT_SECONDS, log=log)


# Who was replaced is turned away, and who could not reach its custodian need not try.
# Any other server is heard, also one that its own plan refuses by now: after a recovery
# of its platform the plan is to be amended, from this very state.
_NOT_HEARD = frozenset(
    {
        _SILENT,
        "server-epoch-old",
        "server-forked",
        "warrant-superseded",
        "mark-old",
        "mark-forked",
    }
)


async def end_early(
    node: Node,
    run: Resting,
    error: CloisterError,
    *,
    custodian: Custodian,
    audit: AuditLog,
    log: FilteringBoundLogger,
) -> None:
    """Records why a run ends before its time; has the party know its newest state.

    Whoever amends the plan then goes on from that state, and not from an older one.
    Nothing of it may hide the failure: what does not succeed is logged.

    Args:
        node: The server's node.
        run: Its rounds; they have failed.
        error: Why.
        custodian: The line to its party's custodian.
        audit: The run's audit log.
        log: One line for each thing that does not succeed.
    """
    kept = await _kept_at_the_end(run, log)
    # A log that is ahead of the state can say nothing of it.
    stated = kept is not None and kept.round == audit.completed
    try:
        audit.run_failed(error, state=kept.digest if kept and stated else None)
    except StorageError as unwritable:
        # Often it is just what the run failed of.
        log.warning(
            "failure-not-recorded", code=unwritable.code, reason=str(unwritable)
        )
        return
    if kept is None or not stated or error.code in _NOT_HEARD:
        return
    mark = server_mark(
        node, completed=kept.round, state=kept.digest, audit_head=audit.durable_head
    )
    await _deposit(custodian, mark, seconds=_EARLY_DEPOSIT_SECONDS, log=log)


async def _kept_at_the_end(run: Resting, log: FilteringBoundLogger) -> Kept | None:
    try:
        return await run.rest()
    except CloisterError as error:
        failed = error
    except Exception as error:  # noqa: BLE001 - or it would hide what the run failed of
        failed = unforeseen(error)
    log.warning("state-not-kept", code=failed.code, reason=str(failed))
    return None


async def _deposit(
    custodian: Custodian, mark: Mark, *, seconds: float, log: FilteringBoundLogger
) -> None:
    try:
        async with asyncio.timeout(seconds):
            await custodian.deposit(mark)
    except TimeoutError:
        code, reason = _SILENT, f"no answer in {seconds:g} s"
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
