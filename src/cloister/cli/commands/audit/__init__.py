"""``cloister audit``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "audit",
    package=__name__,
    summaries={
        "show": "Tell what happened, as a table.",
        "verify": "Check an audit log offline.",
    },
    help="Check what happened in a run, or at a custodian, and read it.",
)
