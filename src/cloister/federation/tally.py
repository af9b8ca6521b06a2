"""What a round's contributors said beside their updates; only sums of it leave here."""

from __future__ import annotations

import math

from cloister.federation.audit_records import Participant
from cloister.federation.messages import EvaluationReport, UpdateHeader
from cloister.federation.rounds.reports import (
    LEAST_REPORTERS,
    count_left_out,
    mean_metrics,
)


class Tally:
    """The headers of the updates that counted in one round."""

    def __init__(self) -> None:
        self._counted: dict[str, tuple[Participant, UpdateHeader]] = {}

    def take(self, by: Participant, header: UpdateHeader) -> None:
        """Takes the header of an update that counts."""
        self._counted[by.party] = (by, header)

    def participants(self, parties: tuple[str, ...]) -> tuple[Participant, ...]:
        """Returns the part that each of `parties` has in the round."""
        return tuple(self._counted[party][0] for party in parties)

    def loss(self, parties: tuple[str, ...]) -> float | None:
        """Returns the mean training loss; None where it would be one party's own."""
        if len(parties) < LEAST_REPORTERS:
            return None
        headers = [self._counted[party][1] for party in parties]
        # Exact: huge ones that cancel out would round away what was added before them.
        total = math.fsum(h.loss_sum for h in headers)
        return total / sum(h.examples for h in headers)

    def metrics(self, parties: tuple[str, ...]) -> tuple[dict[str, float] | None, int]:
        """Returns the means over held-out examples, and how many have none.

        None where nobody was asked, or where they would be one party's own.
        """
        headers = (self._counted[party][1] for party in parties)
        reports = [h.evaluation for h in headers if h.evaluation is not None]
        return means_of(reports), count_left_out(reports)


def means_of(reports: list[EvaluationReport]) -> dict[str, float] | None:
    """Returns the means of what all report; None where it would be one party's own."""
    return mean_metrics(reports) if len(reports) >= LEAST_REPORTERS else None
