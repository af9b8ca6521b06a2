"""The network's structure, sealed to the plan's recipients by one worker.

A server needs no framework, so it has values and no network; a worker has both. Where
the plan names a worker under ``[model] graph``, its node writes the network down as its
framework does and seals that to those whom the model is sealed to. It tries to before
it trains: that a network cannot be written down is to be known before the first round.

What this module does not do: say that the graph is the worker's. The seal gives secrecy
alone; the run's audit log names the model, not the graph.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from structlog.typing import FilteringBoundLogger

from cloister.federation.trainer import Trainer
from cloister.ratls.node import Node
from cloister.storage.age_files import seal_bytes


class GraphSealing:
    """The worker's part in what a run leaves, where the plan gives it one.

    Args:
        node: The worker's node.
        trainer: Its task at work.
        path: Where the sealed graph goes.
        log: One line for the sealed graph.
    """

    def __init__(
        self, node: Node, trainer: Trainer, *, path: Path, log: FilteringBoundLogger
    ) -> None:
        self._mine = node.plan.model.graph == node.party
        self._recipients = node.plan.recipients
        self._trainer = trainer
        self._path = path
        self._log = log

    async def rehearse(self) -> None:
        """Writes the untrained network down and drops it; nothing if not its part.

        Raises:
            ConfigError: If the task or its framework cannot (``task-graph``).
        """
        if self._mine:
            await self._trainer.graph()

    async def seal(self) -> None:
        """Seals the network with the model just received; nothing if not its part.

        Raises:
            ConfigError: If the task or its framework cannot (``task-graph``).
            StorageError: If it cannot be written.
        """
        if not self._mine:
            return
        content = await self._trainer.graph()
        sealed = await asyncio.to_thread(
            seal_bytes, content, recipients=self._recipients, path=self._path
        )
        self._log.info(
            "graph-sealed", size_bytes=sealed.size_bytes, sha256=sealed.sha256
        )
