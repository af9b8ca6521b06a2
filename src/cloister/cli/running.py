"""Runs a plan's custodians and nodes under a reporter, and says how it ended."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import msgspec

from cloister.cli.custodians import open_register
from cloister.cli.earlier_starts import check_begins, check_not_over, check_unknown
from cloister.cli.exit_codes import ExitCode
from cloister.cli.host_time import utc_now
from cloister.cli.launcher import Launcher
from cloister.cli.places import (
    Place,
    custodians_beside,
    read_custodian_place,
    read_place,
)
from cloister.cli.processes import Event, RunOutcome
from cloister.cli.progress import Reporter
from cloister.errors import (
    CloisterError,
    ConfigError,
    PlatformError,
    ProtocolError,
    StorageError,
    VerificationError,
)
from cloister.plan.consent import check_consents
from cloister.plan.plan import Plan
from cloister.ratls.mark import Mark

_ERRORS: dict[int, type[CloisterError]] = {
    ExitCode.USAGE: ConfigError,
    ExitCode.VERIFICATION: VerificationError,
    ExitCode.STORAGE: StorageError,
    ExitCode.PROTOCOL: ProtocolError,
    ExitCode.PLATFORM: PlatformError,
}


class _Failure(msgspec.Struct):
    code: str
    what: str
    expected: str = ""
    got: str = ""
    remedy: str = ""


def run_plan(
    plan: Plan, plan_path: Path, *, reporter: Reporter, fresh: bool = False
) -> None:
    """Runs every node of `plan` to the end of training, from where it stopped.

    Args:
        plan: The plan.
        plan_path: Its file.
        reporter: Told of every event.
        fresh: Whether the run begins anew; what is there is set aside.

    Raises:
        CloisterError: If the run is over, cannot begin anew, or the plan is not signed
            by all; or of the kind, and with the words, of the first process that
            failed.
        KeyboardInterrupt: If the run was interrupted; all have stopped then.
    """
    # Nodes do the same; here it is one error, before anything starts.
    place = read_place(plan_path, role="server", party=None, site_path=None)
    check_may_run(place, fresh=fresh)
    check_consents(plan, plan_path, at=utc_now())
    with reporter:
        try:
            outcome = asyncio.run(_run(plan, plan_path, reporter, fresh=fresh))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
    raise_failure(outcome)


def check_may_run(place: Place, *, fresh: bool) -> Place:
    """Returns `place`, if its run may go on; or begin anew, if that is asked for.

    Raises:
        ConfigError: If it is over; or it goes on from another plan's.
        VerificationError: If it is to begin anew, and a custodian here knows that it
            began.
        StorageError: If its log, or the register of a custodian, cannot be read.
    """
    if not fresh:
        return check_not_over(place)
    check_begins(place.plan)
    check_unknown(place.plan, place.plan_path, _marks_here(place))
    return place


def _marks_here(place: Place) -> dict[str, Mark | None]:
    """Returns what the custodians beside the plan know of the run, by party."""
    marks: dict[str, Mark | None] = {}
    for path in custodians_beside(place.plan_path):
        custodian = read_custodian_place(path)
        with open_register(custodian) as register:
            marks[custodian.party] = register.mark(place.plan.run_id)
    return marks


def raise_failure(outcome: RunOutcome) -> None:
    """Ends a run that did not go to its end.

    Raises:
        CloisterError: With the words of the first process that failed.
        KeyboardInterrupt: If the run was interrupted.
    """
    if outcome.code == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    if outcome.code != ExitCode.OK:
        raise _error_of(outcome)


async def _run(
    plan: Plan, plan_path: Path, reporter: Reporter, *, fresh: bool
) -> RunOutcome:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("no task is running")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    return await Launcher(plan, plan_path, on_event=reporter, fresh=fresh).run()


def _error_of(outcome: RunOutcome) -> CloisterError:
    kind = _ERRORS.get(outcome.code, PlatformError)
    failure: Event = outcome.failure or {
        "code": "node-died",
        "what": f"ended with status {outcome.code}",
        "got": outcome.stderr.strip()[-2000:],
    }
    words = msgspec.convert(failure, _Failure, strict=False)
    return kind(
        f"{outcome.failed}: {words.what}",
        code=words.code,
        expected=words.expected,
        got=words.got,
        remedy=words.remedy,
    )
