"""Attacks on what a custodian remembers, and one that it cannot see.

The register is the only memory outside the host. Each story ends with what is left in
its database.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from tests.support.refusals import code_of
from tests.support.registers import (
    PARTY,
    START,
    Content,
    content_at,
    content_of,
    deposit,
    grant,
    key_of_node,
    mark_of,
    signed_plan,
    successor_of,
)

from cloister.custody.register import Register
from cloister.errors import ConfigError, StorageError

PLAN = signed_plan()
FORMER, NEWEST = 1, 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "custodian.sqlite"


@pytest.fixture
def register(path: Path) -> Iterator[Register]:
    """A run in its tenth round, under its second node and its third server."""
    with Register.create(path, party=PARTY) as register:
        register.adopt(PLAN.text, PLAN.consent, at=START)
        grant(register, PLAN, FORMER)
        deposit(register, PLAN, FORMER, mark_of(4, epoch=1, server="first"))
        grant(register, PLAN, NEWEST)
        deposit(register, PLAN, NEWEST, mark_of(10, epoch=3, server="third"))
        yield register


@pytest.fixture
def before(register: Register) -> Content:
    return content_of(register)


# Nodes


def test_a_former_nodes_key_asks_again(
    register: Register, path: Path, before: Content
) -> None:
    # A clone of the machine, taken before the node was started anew.
    assert code_of(lambda: grant(register, PLAN, FORMER)) == "warrant-superseded"
    assert content_at(path) == before


def test_a_former_node_deposits_what_it_saw(
    register: Register, path: Path, before: Content
) -> None:
    mark = mark_of(11, epoch=3, server="third")
    assert code_of(lambda: deposit(register, PLAN, FORMER, mark)) == (
        "warrant-superseded"
    )
    assert content_at(path) == before


def test_two_clones_of_a_node_take_turns(register: Register, path: Path) -> None:
    # Each start has a key of its own, so the clone that comes second ends the first.
    one, other = 3, 4
    assert grant(register, PLAN, one).epoch == 3
    assert grant(register, PLAN, other).epoch == 4
    assert code_of(lambda: grant(register, PLAN, one)) == "warrant-superseded"
    keys = [row.tls_key for row in content_at(path)[1]]
    assert keys == [key_of_node(node) for node in (FORMER, NEWEST, one, other)]


# Servers


def test_a_superseded_server_goes_on_with_a_worker(
    register: Register, path: Path, before: Content
) -> None:
    # The worker was led to the old server, and says honestly what it sees there.
    mark = mark_of(11, epoch=2, server="second")
    assert code_of(lambda: deposit(register, PLAN, NEWEST, mark)) == "server-epoch-old"
    assert content_at(path) == before


def test_a_second_server_has_the_same_epoch(
    register: Register, path: Path, before: Content
) -> None:
    mark = mark_of(11, epoch=3, server="its twin")
    assert code_of(lambda: deposit(register, PLAN, NEWEST, mark)) == "server-forked"
    assert content_at(path) == before


def test_the_run_is_rolled_back_under_a_new_server(
    register: Register, path: Path, before: Content
) -> None:
    mark = mark_of(9, epoch=4, server="fourth")
    assert code_of(lambda: deposit(register, PLAN, NEWEST, mark)) == "mark-old"
    assert content_at(path) == before


def test_a_round_is_trained_again_with_other_workers(
    register: Register, path: Path, before: Content
) -> None:
    mark = mark_of(10, "another state of", epoch=4, server="fourth")
    assert code_of(lambda: deposit(register, PLAN, NEWEST, mark)) == "mark-forked"
    assert content_at(path) == before


# Plans


@pytest.mark.parametrize("withdrawn", [False, True])
def test_another_plan_takes_over_a_run_that_trains(
    register: Register, path: Path, *, withdrawn: bool
) -> None:
    # Somebody talks the party into signing once more, with another model recipient.
    if withdrawn:
        register.withdraw(PLAN.hash, at=START)
    before = content_of(register)
    other = signed_plan(seed=8)
    with pytest.raises(ConfigError) as caught:
        register.adopt(other.text, other.consent, at=START)
    assert caught.value.code == "run-taken"
    assert code_of(lambda: grant(register, other, 3)) == "plan-not-consented"
    assert content_at(path) == before


def test_an_amendment_rolls_the_run_back(
    register: Register, path: Path, before: Content
) -> None:
    # Everybody signs, for the text says "security patch", and nobody checks a hash.
    for mark in (mark_of(4), mark_of(10, "another state of")):
        older = successor_of(PLAN, mark)
        act = partial(register.adopt, older.text, older.consent, at=START)
        assert code_of(act) == "amendment-state"
    assert content_at(path) == before


def test_a_node_stays_with_the_plan_before_the_amendment(
    register: Register, path: Path
) -> None:
    successor = successor_of(PLAN, mark_of(10))
    register.adopt(successor.text, successor.consent, at=START)
    before = content_of(register)
    # It would run the code with the hole that the amendment closes.
    mark = mark_of(11, epoch=3, server="third")
    for act in (
        lambda: grant(register, PLAN, NEWEST),
        lambda: grant(register, PLAN, 3),
        lambda: deposit(register, PLAN, NEWEST, mark),
    ):
        assert code_of(act) == "plan-superseded"
    assert content_at(path) == before


# The database itself


@pytest.mark.parametrize("how", ["in its place", "by its name"])
def test_an_older_copy_put_back_under_a_running_custodian_is_noticed(
    register: Register, path: Path, tmp_path: Path, how: str
) -> None:
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    grant(register, PLAN, 3)
    if how == "in its place":
        path.write_bytes(copy.read_bytes())
    else:
        copy.replace(path)
    for act in (
        lambda: grant(register, PLAN, 4),
        lambda: register.plan(PLAN.hash),
        register.warrants,
    ):
        with pytest.raises(StorageError) as caught:
            act()
        assert caught.value.code == "register-replaced"
    # Nothing was written to the copy: the third epoch is not given a second time.
    register.close()
    assert [row.epoch for row in content_at(path)[1]] == [1, 2]


def test_an_older_copy_put_back_while_no_custodian_runs_is_not_noticed(
    register: Register, path: Path, tmp_path: Path
) -> None:
    # This is the limit of a memory in one file, and it is no oversight: nothing in an
    # old copy says that it is old. The parties that saw epoch 3 refuse the second one;
    # a run of which all nodes and all custodians are rolled back goes unnoticed.
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    grant(register, PLAN, 3)
    deposit(register, PLAN, 3, mark_of(12, epoch=3, server="third"))
    register.close()
    copy.replace(path)
    with Register.open(path) as deceived:
        assert grant(deceived, PLAN, 4).epoch == 3
        forgotten = mark_of(11, "another state of", epoch=3, server="third")
        assert deposit(deceived, PLAN, 4, forgotten) == forgotten
    _, warrants, marks = content_at(path)
    assert [row.epoch for row in warrants] == [1, 2, 3]
    assert warrants[-1].tls_key == key_of_node(4)
    assert [row.mark for row in marks] == [forgotten]


def test_an_older_copy_that_was_changed_more_often_is_not_noticed_either(
    register: Register, path: Path, tmp_path: Path
) -> None:
    # What a running custodian remembers is how often its database was changed. Who
    # changes the copy more often deceives it: such a one has the party's machine.
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    grant(register, PLAN, 3)
    with Register.open(copy) as forged:
        grant(forged, PLAN, 5)
        grant(forged, PLAN, 6)
    path.write_bytes(copy.read_bytes())
    assert grant(register, PLAN, 4).epoch == 5
    register.close()
    keys = [row.tls_key for row in content_at(path)[1]]
    assert keys == [key_of_node(node) for node in (FORMER, NEWEST, 5, 6, 4)]


def test_the_database_is_taken_away_from_a_running_custodian(
    register: Register, path: Path, before: Content, tmp_path: Path
) -> None:
    away = tmp_path / "away.sqlite"
    path.rename(away)
    with pytest.raises(StorageError) as caught:
        grant(register, PLAN, 3)
    assert caught.value.code == "register-missing"
    assert not path.exists()
    away.rename(path)
    assert grant(register, PLAN, 3).epoch == 3
    assert content_at(path)[1][:2] == before[1]
