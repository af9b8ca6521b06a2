"""One round: which updates count, and what they add up to.

An update counts whole or not at all and exactly once; the sum runs in the plan's party
order, so the result is the same to the bit whatever order updates arrive in. No I/O and
no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloister.errors import ProtocolError
from cloister.federation.audit_records import Participant
from cloister.federation.layout import Layout, ModelBuffer
from cloister.federation.messages import EvaluationReport, UpdateHeader
from cloister.federation.strategies.mean import weighted_mean

# Largest sum that counts: the sum of as many as there may be parties is still finite.
MAX_SUM = 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRules:
    """What an update must be to count.

    Attributes:
        parties: The workers, in plan order.
        layout: How an update lies in its buffer.
        examples: Examples a worker uses in one step, as the plan fixes them.
    """

    parties: tuple[str, ...]
    layout: Layout
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """What a whole round yields; nothing of a single party is left in it.

    Attributes:
        gradient: Mean gradient over all examples: (parameter_count,).
        statistics: Mean statistics, weighted alike: (statistic_count,).
        loss: Mean training loss.
        metrics: Means over all held-out examples; None when not asked for.
        metrics_left_out: How many metrics not every party reported.
    """

    gradient: NDArray[np.float32]
    statistics: NDArray[np.float64]
    loss: float
    metrics: dict[str, float] | None
    metrics_left_out: int


class Round:
    """Collects the updates of one round.

    Args:
        number: The round, counted from 1.
        rules: What an update must be.
        evaluate: Whether this round's updates carry an evaluation.
    """

    def __init__(self, number: int, rules: RoundRules, *, evaluate: bool) -> None:
        self.number = number
        self._rules = rules
        self._evaluate = evaluate
        self._digest = rules.layout.digest()
        self._counted: dict[str, tuple[UpdateHeader, ModelBuffer]] = {}
        self._participants: dict[str, Participant] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Parties whose update has not been counted, in plan order."""
        return tuple(p for p in self._rules.parties if p not in self._counted)

    @property
    def participants(self) -> tuple[Participant, ...]:
        """Whose updates were counted, in plan order."""
        counted = self._participants
        return tuple(counted[p] for p in self._rules.parties if p in counted)

    def check_header(self, party: str, header: UpdateHeader) -> None:
        """Refuses an update that cannot count, before its chunks are read.

        Raises:
            ProtocolError: If it is of another round or layout, repeated, or its
                numbers are not what the plan fixes.
        """
        rules = self._rules
        if party in self._counted:
            raise _refuse(party, "update-repeated", "one update a round", "another")
        if header.round != self.number:
            raise _refuse(
                party, "update-round", f"round {self.number}", f"round {header.round}"
            )
        check_layout(party, expected=self._digest, got=header.layout)
        if header.examples != rules.examples:
            raise _refuse(
                party,
                "update-weight",
                f"{rules.examples} examples",
                str(header.examples),
            )
        if not abs(header.loss_sum) <= MAX_SUM:
            raise _refuse(party, "update-not-finite", "a finite loss", "another")
        if (header.evaluation is not None) != self._evaluate:
            raise _refuse(
                party,
                "update-evaluation",
                "an evaluation exactly when asked for",
                "none" if self._evaluate else "one",
            )
        if header.evaluation is not None:
            check_evaluation(party, header.evaluation)

    def count(self, by: Participant, header: UpdateHeader, update: ModelBuffer) -> None:
        """Counts a whole update; the buffer belongs to the round from now on.

        Args:
            by: Whose it is; the caller verified the countersignature.
            header: The update's header.
            update: The update.

        Raises:
            ProtocolError: If the header cannot count or a value is not finite.
        """
        party = by.party
        self.check_header(party, header)
        if not (
            np.isfinite(update.parameters).all()
            and np.isfinite(update.statistics).all()
        ):
            raise _refuse(
                party, "update-not-finite", "finite values", "NaN or infinity"
            )
        self._counted[party] = (header, update)
        self._participants[party] = by

    def aggregate(self) -> Aggregate:
        """Returns the round's result; every party must have been counted."""
        if self.missing:
            raise RuntimeError("a round is aggregated when it is whole")
        ordered = [self._counted[p] for p in self._rules.parties]
        weights = [header.examples for header, _ in ordered]
        reports = [h.evaluation for h, _ in ordered if h.evaluation is not None]
        return Aggregate(
            gradient=weighted_mean([u.parameters for _, u in ordered], weights),
            statistics=weighted_mean([u.statistics for _, u in ordered], weights),
            loss=sum(h.loss_sum for h, _ in ordered) / sum(weights),
            metrics=mean_metrics(reports) if reports else None,
            metrics_left_out=count_left_out(reports),
        )


def check_layout(party: str, *, expected: str, got: str) -> None:
    """Refuses a model of another layout.

    Raises:
        ProtocolError: If the digests differ.
    """
    if expected != got:
        raise _refuse(party, "layout-differs", f"layout {expected}", f"layout {got}")


def check_evaluation(party: str, report: EvaluationReport) -> None:
    """Refuses an evaluation that would spoil the aggregate.

    Its metrics may have any names: whoever came first would otherwise say for all what
    a metric is called, and have every other party refused.

    Raises:
        ProtocolError: If a sum is not finite.
    """
    if not all(abs(value) <= MAX_SUM for value in report.sums.values()):
        raise _refuse(party, "evaluation-not-finite", "finite sums", "NaN or infinity")


def mean_metrics(reports: list[EvaluationReport]) -> dict[str, float]:
    """Returns the mean of each metric that every party reports.

    It is over the held-out examples of all of them. What some leave out has no mean,
    and would say something of the others alone.
    """
    examples = sum(report.examples for report in reports)
    shared = set[str].intersection(*(set(report.sums) for report in reports))
    return {
        name: math.fsum(report.sums[name] for report in reports) / examples
        for name in sorted(shared)
    }


def count_left_out(reports: list[EvaluationReport]) -> int:
    """Returns how many metrics some party reports, and not every one."""
    if not reports:
        return 0
    names = [set(report.sums) for report in reports]
    return len(set[str].union(*names) - set[str].intersection(*names))


def _refuse(party: str, code: str, expected: str, got: str) -> ProtocolError:
    return ProtocolError(
        f"a message of {party!r} does not count", code=code, expected=expected, got=got
    )
