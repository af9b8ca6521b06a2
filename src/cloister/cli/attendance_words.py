"""Who took part in a run's rounds, as its audit log shows it: in lines, and as JSON.

Also what it can not show: with a number as quorum, who was late, or was kept away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cloister.cli.output import Json
from cloister.federation.auditing.report import AuditReport

# So many names, and lines of them, are read by somebody.
_NAMES = 16
_LINES = 8


def attendance_lines(report: AuditReport) -> Iterator[str]:
    """Yields who took part, by which rule, and what is not known of the others."""
    seen = report.attendance
    if not seen.rounds:
        return
    many = f"{seen.most}" if seen.least == seen.most else f"{seen.least} to {seen.most}"
    yield (
        f"{many} of {len(report.plan.workers)} workers took part in each and"
        " countersigned it, by the plan's rule:"
    )
    yield f"  {_rule(report)}"
    if len(set(seen.by_party.values())) > 1:
        yield "rounds in which each one's update counted:"
        yield from _each(seen.by_party)
    if report.plan.rounds.quorum != "all":
        yield "NOT KNOWN: who of the others came late, had no seat, or was kept away."
        yield "  No log shows that; whoever holds back messages decides it"


def attendance_object(report: AuditReport) -> Json:
    """Returns the same as machines read it, with every worker."""
    seen, rounds = report.attendance, report.plan.rounds
    return {
        "by_the_plans_rule": True,
        "rule": {
            "workers": len(report.plan.workers),
            "seats": report.plan.seats,
            "sample": rounds.sample,
            "quorum": rounds.quorum,
        },
        "rounds": seen.rounds,
        "least": seen.least,
        "most": seen.most,
        "rounds_of": dict(seen.by_party),
        "absence_explained": rounds.quorum == "all",
    }


def names_words(names: Sequence[str]) -> str:
    """Returns names on one line; of very many the first ones and how many more."""
    if len(names) <= _NAMES:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES])} and {len(names) - _NAMES} more"


def _rule(report: AuditReport) -> str:
    plan = report.plan
    quorum, sample = plan.rounds.quorum, plan.rounds.sample
    if quorum != "all":
        return f"at least {quorum} of the {plan.seats} with a seat"
    if sample is None:
        return "all of them"
    return f"exactly the {sample} that its seed draws for the round"


def _each(by_party: Mapping[str, int]) -> Iterator[str]:
    """Yields a line for each number of rounds, the fewest first."""
    names: dict[int, list[str]] = {}
    for name, rounds in by_party.items():
        names.setdefault(rounds, []).append(name)
    numbers = sorted(names)
    left_out = len(numbers) > _LINES
    for rounds in (*numbers[: _LINES - 1], numbers[-1]) if left_out else numbers:
        yield f"  {rounds or 'NONE'}: {names_words(names[rounds])}"
    if left_out:
        yield "  and other numbers between the last two (--json has them all)"
