"""Runs the nodes of a plan from any program, also one whose thread has an event loop.

A notebook's cells run inside one. So the launcher gets a thread and a loop of its own,
and whoever called waits; Ctrl-C, or a notebook's stop, ends the run in order.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cloister.cli.exit_codes import ExitCode
from cloister.cli.host_time import utc_now
from cloister.cli.launcher import Launcher
from cloister.cli.processes import RunOutcome
from cloister.cli.progress import Reporter
from cloister.cli.running import raise_failure
from cloister.plan.consent import check_consents
from cloister.plan.plan import Plan


def run_apart(
    plan: Plan,
    plan_path: Path,
    *,
    reporter: Reporter,
    only: Collection[str],
    fresh: bool,
) -> None:
    """Runs some nodes of `plan`, and the custodians beside it, to the nodes' end.

    Args:
        plan: The plan.
        plan_path: Its file.
        reporter: Told of every event, in another thread.
        only: Whose nodes; the others run elsewhere.
        fresh: Whether they begin anew.

    Raises:
        CloisterError: If the plan is not signed by all; or of the kind, and with the
            words, of the first process that failed.
        KeyboardInterrupt: If the run was interrupted; all here have stopped then.
    """
    check_consents(plan, plan_path, at=utc_now())
    running = _Running(
        Launcher(plan, plan_path, on_event=reporter, only=only, fresh=fresh)
    )
    with reporter, ThreadPoolExecutor(max_workers=1) as thread:
        outcome = thread.submit(running.run)
        try:
            concurrent.futures.wait([outcome])
        except KeyboardInterrupt:
            running.stop()
            raise
    raise_failure(outcome.result())


class _Running:
    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[RunOutcome] = self._loop.create_task(launcher.run())

    def run(self) -> RunOutcome:
        """Runs the launcher to its end, in this thread."""
        asyncio.set_event_loop(self._loop)
        try:
            return self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            return RunOutcome(code=ExitCode.INTERRUPTED)
        finally:
            self._loop.close()

    def stop(self) -> None:
        """Has the launcher stop everybody; from another thread."""
        self._loop.call_soon_threadsafe(self._task.cancel)
