"""What the parties measured, as means; nothing of a single party leaves here.

A mean over one party is that party's own: whoever publishes one looks at
`LEAST_REPORTERS` first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cloister.federation.messages import EvaluationReport

# The fewest parties a published loss or metric is over.
LEAST_REPORTERS = 2


def mean_metrics(reports: Sequence[EvaluationReport]) -> dict[str, float]:
    """Returns the mean of each metric that every party reports.

    It is over the held-out examples of all of them. What some leave out has no mean,
    and would say something of the others alone.

    Args:
        reports: One of each party, in any order; at least one.
    """
    examples = sum(report.examples for report in reports)
    shared = set[str].intersection(*(set(report.sums) for report in reports))
    return {
        name: math.fsum(report.sums[name] for report in reports) / examples
        for name in sorted(shared)
    }


def count_left_out(reports: Sequence[EvaluationReport]) -> int:
    """Returns how many metrics some party reports, and not every one."""
    if not reports:
        return 0
    names = [set(report.sums) for report in reports]
    return len(set[str].union(*names) - set[str].intersection(*names))
