"""Our verdicts beside an independent verifier's, platform by platform."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from tests.unit.attestation.differential import (
    DIVERGENCES,
    Divergence,
    Outcome,
    explained,
    generated,
    ours,
    theirs,
)
from tests.unit.attestation.scenarios import Judge

FEW, MANY = 400, 6_000


def compared(judge: Judge, cases: int, seed: int) -> Counter[str]:
    """Compares so many random platforms; returns what came out how often."""
    rng = np.random.Generator(np.random.PCG64(seed))
    seen: Counter[str] = Counter()
    for number in range(cases):
        platform = generated(judge, rng)
        mine = ours(judge, platform.case, at=platform.at)
        oracle = theirs(judge, platform.case, at=platform.at)
        if mine.agrees_with(oracle):
            seen["agreed"] += 1
        else:
            reason = explained(judge, platform, mine, oracle)
            assert reason, (number, platform.scenario, mine, oracle)
            seen[reason] += 1
        seen[mine.status or "refused"] += 1
    return seen


def test_random_platforms_are_judged_as_an_independent_verifier_judges_them(
    judge: Judge,
) -> None:
    seen = compared(judge, FEW, seed=20_261_120)
    assert seen["agreed"] > FEW / 2
    assert seen["refused"] < FEW * 0.75


@pytest.mark.long
def test_thousands_of_random_platforms_are_judged_alike(judge: Judge) -> None:
    seen = compared(judge, MANY, seed=7)
    assert seen["agreed"] > MANY / 2
    statuses = {"UpToDate", "OutOfDate", "TDRelaunchAdvised", "ConfigurationNeeded"}
    assert statuses <= seen.keys()


@pytest.mark.parametrize("row", DIVERGENCES, ids=lambda row: row.name)
def test_every_row_of_the_table_is_still_true(judge: Judge, row: Divergence) -> None:
    case = row.case(judge)
    at = judge.at + timedelta(days=1)
    mine, oracle = ours(judge, case, at=at), theirs(judge, case, at=at)
    assert row.ours in {mine.status, mine.refusal}
    assert oracle.status == row.theirs or row.theirs in oracle.refusal
    assert not mine.agrees_with(oracle)


def test_refusals_agree_whatever_their_words() -> None:
    assert Outcome(refusal="a").agrees_with(Outcome(refusal="b"))
    assert not Outcome(status="UpToDate").agrees_with(Outcome(refusal="b"))
