"""Fifty workers of whom a tenth leaves and comes in every round, two hundred times."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.churn import Crowd, churned
from tests.support.federation_in_memory import make_federation
from tests.support.run_audit import entries_of
from tests.support.whole_run import make_scene

from cloister.federation.audit_records import RoundCompleted

WORKERS, LEAVING, ROUNDS = 50, 5, 200
SEATS, QUORUM = 45, 40
LIMIT_SECONDS = 300.0


@pytest.mark.long
def test_every_update_of_a_crowd_that_comes_and_goes_is_counted_once_or_refused(
    tmp_path: Path, runner: asyncio.Runner
) -> None:
    federation = make_federation(
        tmp_path / "federation",
        more_workers=tuple(f"worker-{number}" for number in range(WORKERS - 2)),
        change=lambda tree: churned(
            tree, rounds=ROUNDS, seats=SEATS, quorum=QUORUM, deadline_seconds=1
        ),
    )
    scene = make_scene(tmp_path / "run", federation)

    async def story() -> Crowd:
        crowd = Crowd(scene, leaving=LEAVING, slow_every=20, seed=7)
        await asyncio.wait_for(crowd.run(), LIMIT_SECONDS)
        return crowd

    crowd = runner.run(story())
    rounds = [
        it for it in entries_of(scene.directory) if isinstance(it, RoundCompleted)
    ]
    assert [it.round for it in rounds] == list(range(1, ROUNDS + 1))
    recorded = {
        (it.round, who.party, who.tls_key_sha256)
        for it in rounds
        for who in it.participants
    }
    for it in rounds:
        parties = [who.party for who in it.participants]
        assert len(set(parties)) == len(parties), "a party counted twice"
        assert QUORUM <= len(parties) <= SEATS
    assert sum(life.left for life in crowd.lives) >= (ROUNDS - 1) * LEAVING * 0.9

    computed = {
        (number, life.party, life.tls_key_sha256)
        for life in crowd.lives
        for number in life.computed
    }
    assert recorded <= computed, "an update counted that nobody computed"
    late = 0
    for life in crowd.lives:
        counted, refused = set(life.rounds("round")), set(life.rounds("update-late"))
        late += len(refused)
        assert not counted & refused
        for number in counted:
            assert (number, life.party, life.tls_key_sha256) in recorded
        for number in refused:
            assert (number, life.party, life.tls_key_sha256) not in recorded
        # Who was cut off never heard of the last one; whether it counts is in the log.
        heard = life.computed[:-1] if life.left else life.computed
        assert set(heard) <= counted | refused, "an update was lost without a word"
        assert life.error is None
    assert late > 0, "nobody was slow"
