"""``cloister custodian keys``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "keys",
    package=__name__,
    summaries={
        "add": "Make a key, or take one in, and print its name for the plan.",
        "list": "Show kind, label and state of each key.",
        "revoke": "Destroy a key here, for ever.",
        "rotate": "Make a new key in the place of one.",
    },
    help="Keep a party's keys: sealed here, released to attested code alone.",
)
