"""The source files beside a plan: read once, measured together, and only then run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloister.federation.strategy_loading import read_strategy_source
from cloister.federation.task_loading import read_task_source
from cloister.plan.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What lies beside the plan and runs in its nodes, byte for byte.

    Attributes:
        task: The task's file.
        strategy: That of the plan's own strategy; None where it names one of ours.
    """

    task: bytes
    strategy: bytes | None = None

    @property
    def measured(self) -> tuple[bytes, ...]:
        """All of them, as every node measures them, whichever it runs."""
        return (self.task,) if self.strategy is None else (self.task, self.strategy)


def read_sources(plan: Plan, directory: Path) -> Sources:
    """Returns the source files that a plan names.

    Args:
        plan: The plan.
        directory: Where it lies.

    Raises:
        ConfigError: If a file is missing, unreadable or too large.
    """
    own = plan.training.own_strategy
    return Sources(
        task=read_task_source(directory / plan.task.file),
        strategy=None if own is None else read_strategy_source(directory / own.file),
    )
