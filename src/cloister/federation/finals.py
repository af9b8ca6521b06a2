"""The end of training: every worker's report on the final model, one each."""

from __future__ import annotations

from cloister.federation.audit_records import Participant
from cloister.federation.messages import EvaluationReport
from cloister.federation.rounds import count_left_out, mean_metrics


class Finals:
    """Collects the reports on the final model.

    Args:
        parties: The workers, in plan order.
    """

    def __init__(self, parties: tuple[str, ...]) -> None:
        self._parties = parties
        self._reports: dict[str, tuple[Participant, EvaluationReport]] = {}

    @property
    def missing(self) -> tuple[str, ...]:
        """Parties that have not reported, in plan order."""
        return tuple(p for p in self._parties if p not in self._reports)

    @property
    def participants(self) -> tuple[Participant, ...]:
        """Who has reported, in plan order."""
        return tuple(self._reports[p][0] for p in self._parties if p in self._reports)

    def take(self, by: Participant, report: EvaluationReport) -> None:
        """Takes a party's report; another one of the same party changes nothing."""
        self._reports.setdefault(by.party, (by, report))

    def metrics(self) -> tuple[dict[str, float], int]:
        """Returns the means of what all report, and how many metrics are not in it."""
        if self.missing:
            raise RuntimeError("metrics are of all parties")
        reports = [self._reports[p][1] for p in self._parties]
        return mean_metrics(reports), count_left_out(reports)
