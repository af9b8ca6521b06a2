"""``cloister data``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "data",
    package=__name__,
    summaries={
        "import-plinius": "Seal what Plinius encrypted.",
        "info": "Show what a sealed data set says of itself, without its key.",
        "seal": "Seal records, and print what the plan needs.",
        "verify": "Open every record of a sealed data set, and check it.",
    },
    help="Seal a party's records, look at them, check them.",
)
