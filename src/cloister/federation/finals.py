"""The end of training: the workers' reports on the final model, one each."""

from __future__ import annotations

from cloister.federation.audit_records import Participant
from cloister.federation.messages import EvaluationReport
from cloister.federation.rounds.reports import count_left_out
from cloister.federation.tally import means_of


class Finals:
    """Collects the reports on the final model."""

    def __init__(self) -> None:
        self._reports: dict[str, tuple[Participant, EvaluationReport]] = {}

    def take(self, by: Participant, report: EvaluationReport) -> None:
        """Takes a party's report; another one of the same party changes nothing."""
        self._reports.setdefault(by.party, (by, report))

    def participants(self, parties: tuple[str, ...]) -> tuple[Participant, ...]:
        """Returns the part that each of `parties` has in the end."""
        return tuple(self._reports[party][0] for party in parties)

    def metrics(self, parties: tuple[str, ...]) -> tuple[dict[str, float], int]:
        """Returns the means of what all of `parties` report, and how many have none.

        Nothing where it would be one party's own.
        """
        reports = [self._reports[party][1] for party in parties]
        return means_of(reports) or {}, count_left_out(reports)
