"""Runs a node or a custodian from start to end in this process; ends it in order."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, suppress
from typing import NoReturn

from structlog.typing import FilteringBoundLogger

from cloister.cli.exit_codes import ExitCode, exit_code_of
from cloister.cli.output import error_object, show_error
from cloister.cli.own_output import Prints, prints_apart
from cloister.errors import CloisterError

# A process may usually open 1,024 files, and a connection is one: fewer than there are
# places for enrolments. Each of a stranger's connections takes some tens of kilobytes.
_OPEN_FILES = 8192

NodeMain = Callable[[FilteringBoundLogger], Awaitable[None]]


def run_node(
    journal: AbstractContextManager[FilteringBoundLogger],
    main: NodeMain,
    *,
    prints: Prints,
    tethered: bool,
) -> NoReturn:
    """Runs `main` until it ends, fails, or is interrupted; then exits the process.

    Args:
        journal: Opens the log.
        main: The work.
        prints: What becomes of what is printed meanwhile, by a task for instance.
        tethered: Whether to stop when standard input closes, as when a launcher dies.
    """
    _allow_connections()
    with journal as log, prints_apart(prints, log):
        try:
            code = asyncio.run(_watched(main, log, tethered=tethered))
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        if code is ExitCode.INTERRUPTED:
            log.warning("interrupted")
    sys.exit(code)


def _allow_connections() -> None:
    """Raises the number of files that this process may open, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # RLIM_INFINITY is below zero.
    wanted = min(_OPEN_FILES, hard) if hard >= 0 else _OPEN_FILES
    if 0 <= soft < wanted:
        # A filter may forbid it; then there is room for fewer.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _watched(
    main: NodeMain, log: FilteringBoundLogger, *, tethered: bool
) -> ExitCode:
    loop = asyncio.get_running_loop()
    work = asyncio.ensure_future(main(log))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    if tethered:
        loop.add_reader(0, _stop_at_end, loop, work)
    try:
        await work
    except asyncio.CancelledError:
        return ExitCode.INTERRUPTED
    except CloisterError as error:
        log.error("failed", **error_object(error))  # noqa: TRY400 - no traceback
        show_error(error, as_json=False)
        return exit_code_of(error)
    return ExitCode.OK


def _stop_at_end(loop: asyncio.AbstractEventLoop, work: asyncio.Future[None]) -> None:
    # Nothing is ever said on a tether; that it can be read means that it was cut.
    if not os.read(0, 1):
        loop.remove_reader(0)
        work.cancel()
