"""Runs one node from start to end in this process, and ends it in order."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger

from cloister.cli.exit_codes import ExitCode, exit_code_of
from cloister.cli.journal import open_journal
from cloister.cli.nodes import Place
from cloister.cli.output import error_object, show_error
from cloister.errors import CloisterError

NodeMain = Callable[[FilteringBoundLogger], Awaitable[None]]


def run_node(place: Place, main: NodeMain, *, as_json: bool, tethered: bool) -> None:
    """Runs `main` until it ends, fails, or is interrupted; then exits the process.

    Args:
        place: The node's plan and site.
        main: The node's work.
        as_json: Whether events go to stdout.
        tethered: Whether to stop when standard input closes, as when a launcher dies.
    """
    with open_journal(
        place.run_directory, party=place.site.party, as_json=as_json
    ) as log:
        try:
            code = asyncio.run(_watched(main, log, tethered=tethered))
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        if code is ExitCode.INTERRUPTED:
            log.warning("interrupted")
    sys.exit(code)


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
