"""``cloister custodian``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "custodian",
    package=__name__,
    summaries={
        "init": "Make a custodian: a key, a file to edit, an empty register.",
        "rewind": "Forget how far a run had come.",
        "serve": "Warrant the party's nodes, until Ctrl-C.",
        "status": "Show plans, newest nodes and marks.",
    },
    help="Keep a party's consents, and warrant its nodes.",
)
