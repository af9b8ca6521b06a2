"""Who has a seat in a round, and how many must come."""

from __future__ import annotations

from itertools import product

import pytest
from tests.support.plan_tree import (
    Tree,
    add_worker,
    average,
    by_identity,
    plan_tree,
    put,
    take,
    toml_of,
    with_quorum,
)

from cloister.errors import ConfigError
from cloister.plan.plan import Plan, parse_plan, plan_hash

FIVE = ("alice", "bob", "carol", "dave", "erin")


def tree_of(workers: int) -> Tree:
    """Returns a plan of fedavg with so many workers."""
    tree = average(plan_tree())
    parties = tree["party"]
    assert isinstance(parties, list)
    del parties[workers + 1 :]
    for name in FIVE[2:workers]:
        add_worker(tree, name)
    return tree


def plan(tree: Tree) -> Plan:
    return parse_plan(toml_of(tree))


def refusal(tree: Tree) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(tree)
    return caught.value


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_all_workers_have_a_seat_and_all_must_come_where_nothing_is_said(
    workers: int,
) -> None:
    found = plan(take(tree_of(workers), ("rounds",)))
    assert (found.seats, found.least_contributors) == (workers, workers)


@pytest.mark.parametrize("sample", range(1, 7))
def test_two_workers_at_least_are_drawn_and_no_more_than_there_are(
    sample: int,
) -> None:
    tree = put(tree_of(5), ("rounds", "sample"), sample)
    if 2 <= sample <= 5:
        assert (plan(tree).seats, plan(tree).least_contributors) == (sample, sample)
        return
    error = refusal(tree)
    assert (error.code, error.got) == ("sample-invalid", str(sample))
    assert "from 2 to 5" in error.expected


def test_workers_are_drawn_in_fedavg_alone() -> None:
    error = refusal(put(plan_tree(), ("rounds", "sample"), 2))
    assert error.code == "sample-unused"
    assert "sync-sgd" in error.got


@pytest.mark.parametrize(("sample", "quorum"), list(product([None, 2, 3, 5], range(7))))
def test_a_quorum_is_two_at_least_and_no_more_than_have_a_seat(
    sample: int | None, quorum: int
) -> None:
    seats = sample or 5
    tree = with_quorum(tree_of(5), quorum, sample=sample)
    if 2 <= quorum <= seats:
        assert (plan(tree).seats, plan(tree).least_contributors) == (seats, quorum)
        return
    error = refusal(tree)
    assert (error.code, error.got) == ("quorum-invalid", str(quorum))
    assert f"from 2 to {seats}" in error.expected


def test_one_worker_is_no_quorum() -> None:
    assert refusal(with_quorum(tree_of(1), 1)).code == "quorum-invalid"


def test_sync_sgd_may_have_a_quorum_as_well() -> None:
    assert plan(with_quorum(plan_tree(), 2)).least_contributors == 2


def test_a_number_as_quorum_needs_a_deadline() -> None:
    tree = put(tree_of(5), ("rounds", "quorum"), 3)
    assert refusal(tree).code == "deadline-missing"
    assert plan(with_quorum(tree, 3, deadline_seconds=1)).rounds.deadline_seconds == 1


def test_rounds_are_trained_again_only_where_nobody_may_miss_them() -> None:
    kept = put(tree_of(5), ("rounds", "mirror_every"), 4)
    assert plan(kept).rounds.mirror_every == 4
    assert refusal(with_quorum(kept, 3)).code == "mirror-interval"
    with_quorum(put(kept, ("rounds", "mirror_every"), 1), 3)
    assert plan(kept).rounds.quorum == 3


@pytest.mark.parametrize("quorum", ["all", None])
def test_a_deadline_would_be_ignored_where_all_must_come(quorum: str | None) -> None:
    tree = put(tree_of(5), ("rounds", "deadline_seconds"), 60)
    if quorum is None:
        take(tree, ("rounds", "quorum"))
    error = refusal(tree)
    assert error.code == "deadline-unused"
    assert "'all'" in error.got


@pytest.mark.parametrize(
    ("sample", "quorum", "least"),
    [(None, None, 5), (4, None, 4), (None, 3, 3), (4, 2, 2), (4, 4, 4)],
)
def test_the_colluders_are_counted_against_the_smallest_round(
    sample: int | None, quorum: int | None, least: int
) -> None:
    for colluders in range(5):
        tree = by_identity(tree_of(5), "erin", colluders=colluders)
        if sample is not None:
            put(tree, ("rounds", "sample"), sample)
        if quorum is not None:
            with_quorum(tree, quorum)
        if colluders + 2 <= least:
            assert plan(tree).least_contributors == least
            continue
        error = refusal(tree)
        assert (error.code, error.got) == ("colluders-too-many", str(least))


def test_who_has_a_seat_and_who_must_come_change_the_hash() -> None:
    trees = [
        tree_of(5),
        put(tree_of(5), ("rounds", "sample"), 5),
        put(tree_of(5), ("rounds", "sample"), 4),
        with_quorum(tree_of(5), 5),
        with_quorum(tree_of(5), 4),
        with_quorum(tree_of(5), 4, deadline_seconds=61),
        with_quorum(tree_of(5), 4, sample=4),
    ]
    assert len({plan_hash(plan(tree)) for tree in trees}) == len(trees)
