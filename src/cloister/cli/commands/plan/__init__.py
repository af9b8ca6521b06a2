"""``cloister plan``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "plan",
    package=__name__,
    summaries={
        "amend": "Write a successor that takes over a plan's run.",
        "check": "Check a plan, print its hash, and say who signed.",
        "show": "Say in words what a plan means.",
        "sign": "Consent to a plan, as one party or as all that are here.",
        "withdraw": "Take a consent back.",
    },
    help="Check, show, sign, amend or withdraw a plan.",
)
