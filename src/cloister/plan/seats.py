"""Who has a seat in a round, and how many must come: the rules of sample and quorum."""

from __future__ import annotations

from collections.abc import Sequence

from cloister.errors import ConfigError
from cloister.plan.parties import Party
from cloister.plan.sections import Rounds
from cloister.plan.training import Mode

# Of so many updates a mean hides one.
_FEWEST = 2
# `federation.exact_sum.MAX_UPDATES`.
_MOST_IN_EXACT_SUM = 4095


def check_seats(rounds: Rounds, mode: Mode, *, workers: Sequence[Party]) -> Rounds:
    """Returns `rounds`, if so many workers can fill them.

    Args:
        rounds: The plan's section.
        mode: What a worker does in a round.
        workers: The plan's.

    Raises:
        ConfigError: If workers are drawn where all are needed, or more are drawn or
            must come than there can be, or too few to hide one.
    """
    sample, quorum = rounds.sample, rounds.quorum
    if sample is not None:
        if mode != "fedavg":
            raise ConfigError(
                "workers are not drawn in this mode",
                code="sample-unused",
                expected="[rounds] sample with mode = 'fedavg', and with no other",
                got=f"sample = {sample} with {mode!r}",
                remedy="Remove it: in every round all workers have a seat.",
            )
        _check_between(sample, len(workers), what="sample", of="workers")
    seats = len(workers) if sample is None else sample
    if quorum != "all":
        _check_between(quorum, seats, what="quorum", of="workers with a seat")
    by_identity = any(worker.admit == "identity" for worker in workers)
    if (quorum != "all" or by_identity) and seats > _MOST_IN_EXACT_SUM:
        raise ConfigError(
            "too many workers in a round for an exact sum",
            code="quorum-invalid",
            expected=f"at most {_MOST_IN_EXACT_SUM} workers with a seat where quorum"
            " is a number, or a worker is admitted by identity",
            got=str(seats),
            remedy="Draw fewer with [rounds] sample.",
        )
    return rounds


def _check_between(number: int, most: int, *, what: str, of: str) -> None:
    if not _FEWEST <= number <= most:
        raise ConfigError(
            f"no round of this plan can have such a {what}",
            code=f"{what}-invalid",
            expected=f"[rounds] {what} from {_FEWEST} to {most}, the number of {of}",
            got=str(number),
            remedy="A mean of fewer than two updates would be one party's."
            if number < _FEWEST
            else "",
        )
