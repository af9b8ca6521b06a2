"""Turns the plan's own strategy file into a strategy, from the very bytes measured.

`federation/strategies/strategy.py` says what a strategy must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from cloister.federation.own_strategy import STRATEGY
from cloister.federation.plan_code import PlanCode, read_source
from cloister.federation.strategies.strategy import Strategy
from cloister.plan.values import Option


def read_strategy_source(path: Path) -> bytes:
    """Returns the bytes of a strategy file, to be measured and then loaded.

    Raises:
        ConfigError: If the file is missing, unreadable or too large.
    """
    return read_source(path, STRATEGY)


def load_strategy(
    source: bytes,
    *,
    filename: str,
    class_name: str,
    options: Mapping[str, Option],
    simulated: bool,
) -> Strategy:
    """Returns an instance of a strategy file's class; `OwnStrategy` guards its calls.

    Args:
        source: The measured bytes of the file.
        filename: Its name, for messages.
        class_name: The class to make.
        options: Its keyword arguments.
        simulated: Whether nothing is confidential, so that errors may be quoted.

    Raises:
        ConfigError: If the file does not run, or the class is not a strategy.
    """
    code = PlanCode(
        kind=STRATEGY, source=source, filename=filename, simulated=simulated
    )
    return cast("Strategy", code.make(class_name, options))
