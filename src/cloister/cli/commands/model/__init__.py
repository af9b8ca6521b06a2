"""``cloister model``: one module for each command."""

from __future__ import annotations

from cloister.cli.lazy import LazyGroup

command = LazyGroup(
    "model",
    package=__name__,
    summaries={
        "evaluate": "Evaluate the sealed model in an attested node.",
        "open": "Open what a run sealed.",
        "predict": "Predict on sealed records in an attested node.",
    },
    help="Open a sealed model, or use it in an attested node.",
)
