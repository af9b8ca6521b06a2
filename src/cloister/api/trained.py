"""What a federation gives back when it has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloister.cli.processes import Event
from cloister.cli.run_view import is_custodian
from cloister.errors import ConfigError
from cloister.federation.auditing.report import AuditReport
from cloister.plan.plan import Plan
from cloister.storage.model_vault import OpenedModel

_METRIC = "metric."


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One completed round, as the server tells of it.

    Attributes:
        number: From 1.
        loss: Mean training loss over all parties' examples of the round, before its
            step; None where so few took part that nobody is told.
        learning_rate: Of that round.
        seconds: Since the round before it.
        metrics: Of the model after this round, on all held-out records; empty where it
            was not evaluated.
    """

    number: int
    loss: float | None
    learning_rate: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The outcome of a run.

    Attributes:
        plan: What was run.
        plan_path: Its file.
        history: The rounds in order; empty where the server runs elsewhere.
        run_directory: Logs, audit log and sealed model, as far as they are here.
        model: The opened model; None where the server runs elsewhere, or nobody here
            has an identity that opens it.
        audit: What the run's log proves, held against the custodians that are here;
            None where the log is elsewhere.
    """

    plan: Plan
    plan_path: Path
    history: tuple[Round, ...]
    run_directory: Path
    model: OpenedModel | None = field(repr=False)
    audit: AuditReport | None = field(repr=False)

    @property
    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The trained model, as the task exports one.

        Raises:
            ConfigError: If it was not opened here (``model-not-here``).
        """
        return dict(self._opened().arrays)

    @property
    def metrics(self) -> dict[str, float]:
        """The final model's metrics on all parties' held-out records, by name.

        Those sealed with the model; or else the last that the server told of.

        Raises:
            ConfigError: If neither is here (``model-not-here``).
        """
        if self.model is None:
            for it in reversed(self.history):
                if it.metrics:
                    return dict(it.metrics)
        return {
            name.removeprefix(_METRIC): float(value)
            for name, value in self._opened().metadata.items()
            if name.startswith(_METRIC)
        }

    @property
    def simulated(self) -> bool:
        """Whether nothing was confidential: a simulation, whatever was computed."""
        return self.plan.simulated

    def _opened(self) -> OpenedModel:
        if self.model is None:
            raise ConfigError(
                "the model was not opened here",
                code="model-not-here",
                expected="the sealed model in the server's run directory, and an"
                " identity of one of its recipients",
                remedy="Fetch the sealed model and open it with `cloister model open`.",
            )
        return self.model


class HistoryKeeper:
    """Takes a run's events and keeps what the server tells of its rounds.

    Args:
        server: The server's party.
    """

    def __init__(self, server: str) -> None:
        self._server = server
        self._rounds: dict[int, _RoundEvent] = {}
        self._metrics: dict[int, dict[str, float]] = {}

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        if event.get("party") != self._server or is_custodian(event):
            return
        kind = event.get("event")
        if kind == "round":
            told = msgspec.convert(event, _RoundEvent)
            self._rounds[told.round] = told
        elif kind == "evaluation":
            evaluated = msgspec.convert(event, _EvaluationEvent)
            self._metrics[evaluated.round] = evaluated.metrics

    def history(self) -> tuple[Round, ...]:
        """Returns the rounds in order."""
        return tuple(
            Round(
                number=number,
                loss=told.loss,
                learning_rate=told.learning_rate,
                seconds=told.seconds,
                metrics=self._metrics.get(number, {}),
            )
            for number, told in sorted(self._rounds.items())
        )


class _RoundEvent(msgspec.Struct):
    round: int
    learning_rate: float
    seconds: float
    loss: float | None = None


class _EvaluationEvent(msgspec.Struct):
    round: int
    metrics: dict[str, float]
