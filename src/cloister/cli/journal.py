"""The log of a node or a custodian: one JSON object a line.

The same lines go to stdout with ``--json``, where a launcher reads them, or in short
form to stderr for a person. Logs lie on an untrusted host: they carry counts, times,
public values and aggregates, never a key, a parameter or one party's metric; but for
what a recipient's evaluation gives, which its site asked for. What an owner's own task
prints is on stdout, and never in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from cloister.cli.own_output import PRINTED, OwnOutput
from cloister.errors import PlatformError

# Rounds come many a second; a person at a terminal wants one now and then.
_HUMAN_EVERY_ROUNDS = 20


@contextmanager
def open_journal(
    run_directory: Path, *, party: str, as_json: bool
) -> Iterator[FilteringBoundLogger]:
    """Opens a node's log for appending.

    Args:
        run_directory: The run's directory; made if absent.
        party: The node's party, in every line.
        as_json: Whether stdout receives every line as well.

    Raises:
        PlatformError: If the log cannot be written.
    """
    path = run_directory / "logs" / f"{party}.jsonl"
    with open_log(path, as_json=as_json, party=party) as log:
        yield log


@contextmanager
def open_log(
    path: Path, *, as_json: bool, **everywhere: str
) -> Iterator[FilteringBoundLogger]:
    """Opens a log for appending.

    Args:
        path: The file; its directory is made if absent.
        as_json: Whether stdout receives every line as well.
        everywhere: Stands in every line.

    Raises:
        PlatformError: If the log cannot be written, or there is no stdout for it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", buffering=1)
    except OSError as error:
        raise PlatformError(
            f"cannot write the log {path}",
            code="log-unwritable",
            got=error.strerror or "an error",
            remedy="[paths] runs in site.toml says where runs are kept, logs in"
            " custodian.toml where a custodian's log lies.",
        ) from error
    with file, closing(OwnOutput()) if as_json else nullcontext() as out:
        yield structlog.wrap_logger(
            None,
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _Sink(file, out),
            ],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
        ).bind(**everywhere)


class _Sink:
    """Last processor: writes the line and stops."""

    def __init__(self, file: TextIO, out: OwnOutput | None) -> None:
        self._file = file
        self._out = out
        self._json = structlog.processors.JSONRenderer()
        self._human = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=20
        )

    def __call__(
        self, logger: WrappedLogger, method: str, event: EventDict
    ) -> EventDict:
        line = str(self._json(logger, method, dict(event)))
        if event["event"] != PRINTED:
            self._file.write(line + "\n")
        if self._out is not None:
            self._out.say(line)
        elif event["event"] != "round" or event["round"] % _HUMAN_EVERY_ROUNDS == 0:
            sys.stderr.write(str(self._human(logger, method, dict(event))) + "\n")
        raise structlog.DropEvent
