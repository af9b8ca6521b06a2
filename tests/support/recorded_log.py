"""A log that keeps its lines, as a test or as a file on disk sees them."""

from __future__ import annotations

import json
from pathlib import Path

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

Event = dict[str, object]


class RecordedLog:
    """Keeps every event in memory.

    Attributes:
        events: All events, each with its name under ``event``.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []

    def logger(self) -> FilteringBoundLogger:
        """Returns a logger that writes here."""
        logger: FilteringBoundLogger = structlog.wrap_logger(
            None,
            processors=[structlog.processors.add_log_level, self._keep],
            wrapper_class=structlog.make_filtering_bound_logger("info"),
        )
        return logger

    def named(self, name: str) -> list[Event]:
        """Returns the events of one name."""
        return [event for event in self.events if event["event"] == name]

    def text(self) -> str:
        """Returns all of it as text, to search for what must not be there."""
        return json.dumps(self.events)

    def _keep(self, _: WrappedLogger, __: str, event: EventDict) -> EventDict:
        self.events.append(dict(event))
        raise structlog.DropEvent


def read_events(path: Path, name: str | None = None) -> list[Event]:
    """Returns the events in a node's log file, all or those of one name."""
    events: list[Event] = [json.loads(line) for line in path.read_text().splitlines()]
    return [event for event in events if name in (None, event["event"])]
