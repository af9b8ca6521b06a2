"""``cloister custodian``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "custodian",
    package=__name__,
    summaries={
        "audit": "Write what was decided, signed, for auditors.",
        "head": "Sign how far a run's audit log had come.",
        "keys": "Keep the party's keys.",
        "init": "Make a custodian: a key, a file to edit, a register, a keyring.",
        "rewind": "Forget how far a run had come.",
        "serve": "Warrant the party's nodes, until Ctrl-C.",
        "status": "Show plans, newest nodes, marks and keys.",
    },
    help="Keep a party's consents and keys, and warrant its nodes.",
)
