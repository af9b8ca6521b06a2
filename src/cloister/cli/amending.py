"""Whether a run was stopped so that an amended plan can go on from it.

A server that was killed has a newer state than its custodian knows of, and goes on from
that one alone. A successor written from the custodian's mark would name another state:
once all have signed it, the run could go on under no plan. One that is stopped in good
order tells its custodian its newest state, and its log that it did stop.

The log is not believed, here as little as elsewhere: whoever forges one gains a plan
that trains nothing. It guards against a mistake, and not against anybody.
"""

from __future__ import annotations

from pathlib import Path

from cloister.cli.log_end import FAILED, SEALED, LogEnd, read_end
from cloister.cli.places import default_site_path, read_place
from cloister.errors import ConfigError
from cloister.plan.plan import Plan
from cloister.ratls.mark import Mark


def log_beside(plan_path: Path, plan: Plan) -> Path | None:
    """Returns the run's log, if the server's site lies beside the plan; else None.

    Raises:
        ConfigError: If the site file is there and does not fit.
    """
    if not default_site_path(plan_path, plan.server.name).exists():
        return None
    return read_place(plan_path, role="server", party=None, site_path=None).audit_path


def check_stopped(plan: Plan, mark: Mark, log: Path | None) -> Mark:
    """Returns `mark`, if the server's last word in its log is of the mark's state.

    Args:
        plan: The plan that is to be amended.
        mark: How far a custodian knows its run to be.
        log: The run's audit log; None if nobody knows where it is.

    Raises:
        ConfigError: If it is not: the server was killed, is still running, or its
            custodian did not hear of its end; or there is no log
            (``amendment-unstopped``).
        StorageError: If the log cannot be read.
    """
    if log is None or not log.exists():
        raise _unstopped(
            plan,
            mark,
            got="no log" if log is None else f"no file {log}",
            remedy="Copy the run's audit.jsonl from the server's machine, and name it:"
            " --log FILE.",
        )
    end = read_end(log)
    if end.kind not in {FAILED, SEALED} or end.state != mark.state.hex():
        server = plan.server.name
        raise _unstopped(
            plan,
            mark,
            got=_in_words(end),
            remedy="Start the server once more under this plan, stop it in good order"
            " when it goes on (Ctrl-C, SIGTERM), with its custodian there, then amend."
            f" Take the custodian of {server}, and the log as it is after the stop.",
        )
    return mark


def _unstopped(plan: Plan, mark: Mark, *, got: str, remedy: str) -> ConfigError:
    return ConfigError(
        f"it is not known that the server of run {plan.run_id!r} stopped at the state"
        " that the custodian knows",
        code="amendment-unstopped",
        expected=f"a log that ends with {FAILED}, or {SEALED}, and the state"
        f" {mark.state.hex()} (round {mark.round})",
        got=got,
        remedy=remedy,
    )


def _in_words(end: LogEnd) -> str:
    if not end.kind:
        return "a file that does not end with a record"
    return f"one that ends with {ascii(end.kind)[1:-1][:64]} and " + (
        "no state" if end.state is None else f"the state {ascii(end.state)[1:-1][:64]}"
    )
