from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import IO

import pytest
from tests.support.registers import (
    PARTY,
    START,
    content_at,
    deposit,
    grant,
    key_of_node,
    mark_of,
    signed_plan,
)

from cloister.custody.register import Register
from cloister.custody.register_records import WARRANTS_AN_HOUR

PLAN = signed_plan()
OTHER_RUN = signed_plan(run="b")
ROOT = Path(__file__).parents[3]
ENDLESS = 10**6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "custodian.sqlite"
    with Register.create(path, party=PARTY) as register:
        register.adopt(PLAN.text, PLAN.consent, at=START)
    return path


class GrantingProcess:
    """Another process on the same register; see `tests.support.granting_process`."""

    def __init__(self, path: Path, *, first: int, count: int, hours: int) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [
                *(sys.executable, "-m", "tests.support.granting_process"),
                *(str(path), PLAN.hash.hex(), str(first), str(count), str(hours)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def wait_until_ready(self) -> None:
        assert self._output.readline() == b"ready\n"

    def begin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def next_grant(self) -> tuple[int, int]:
        epoch, node = self._output.readline().split()
        return int(epoch), int(node)

    def kill(self) -> None:
        self._process.kill()

    def rest(self) -> list[tuple[int, int]]:
        """Returns what else it had granted when it ended."""
        lines = self._output.read().splitlines()
        self._process.wait()
        return [(int(epoch), int(node)) for epoch, node in map(bytes.split, lines)]

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def granting(
    path: Path, *, first: int, count: int, hours: int = 0
) -> Iterator[GrantingProcess]:
    process = GrantingProcess(path, first=first, count=count, hours=hours)
    try:
        yield process
    finally:
        process.end()


def test_a_killed_custodian_forgets_no_warrant_it_gave(path: Path) -> None:
    granted: dict[int, int] = {}
    # One crash after another, each after another number of warrants, and each while
    # the next one is under way: the child does not wait for its parent.
    for crash, warrants in enumerate((1, 2, 3, 5, 8, 13)):
        # No more warrants are signed in an hour than a child gets round to.
        hours = 4 * crash
        with granting(path, first=1000 * crash, count=ENDLESS, hours=hours) as process:
            process.wait_until_ready()
            process.begin()
            told = [process.next_grant() for _ in range(warrants)]
            process.kill()
            told += process.rest()
        granted |= dict(told)
        rows = {row.epoch: row.tls_key for row in content_at(path)[1]}
        for epoch, node in granted.items():
            assert rows[epoch] == key_of_node(node)
        # At most one warrant of each crash was durable and not told.
        assert len(rows) <= len(granted) + crash + 1
        assert sorted(rows) == list(range(1, len(rows) + 1))
        with Register.open(path) as register:
            at = START + timedelta(hours=hours + 2)
            terms = grant(register, PLAN, 1000 * crash + 999, at=at)
        assert terms.epoch == len(rows) + 1 > max(granted)
        granted[terms.epoch] = 1000 * crash + 999


def test_two_processes_at_once_never_give_one_epoch_twice(path: Path) -> None:
    count = WARRANTS_AN_HOUR // 2
    with (
        granting(path, first=0, count=count) as one,
        granting(path, first=1000, count=count) as other,
    ):
        for process in (one, other):
            process.wait_until_ready()
        for process in (one, other):
            process.begin()
        granted = one.rest() + other.rest()
    assert sorted(epoch for epoch, _ in granted) == list(range(1, 2 * count + 1))
    rows = {row.epoch: row.tls_key for row in content_at(path)[1]}
    assert rows == {epoch: key_of_node(node) for epoch, node in granted}


def test_plans_are_signed_while_a_custodian_runs(path: Path) -> None:
    with (
        Register.open(path) as signing,
        granting(path, first=0, count=40) as custodian,
    ):
        custodian.wait_until_ready()
        custodian.begin()
        signing.adopt(OTHER_RUN.text, OTHER_RUN.consent, at=START)
        signing.withdraw(OTHER_RUN.hash, at=START)
        granted = custodian.rest()
        assert [epoch for epoch, _ in granted] == list(range(1, 41))
        assert [row.state for row in signing.plans()] == ["active", "withdrawn"]


def test_many_threads_at_once_never_give_one_epoch_twice(path: Path) -> None:
    with Register.open(path) as register, ThreadPoolExecutor(8) as threads:
        granted = list(
            threads.map(
                lambda node: grant(register, PLAN, node), range(WARRANTS_AN_HOUR)
            )
        )
        assert sorted(terms.epoch for terms in granted) == list(
            range(1, WARRANTS_AN_HOUR + 1)
        )
    rows = {row.epoch: row.tls_key for row in content_at(path)[1]}
    assert rows == {terms.epoch: terms.tls_key for terms in granted}


def test_two_registers_in_one_process_see_each_other(path: Path) -> None:
    with Register.open(path) as one, Register.open(path) as other:
        assert grant(one, PLAN, 1).epoch == 1
        assert grant(other, PLAN, 2).epoch == 2
        deposit(other, PLAN, 2, mark_of(3))
        assert one.mark("blobs/a") == mark_of(3)
        other.close()
        assert grant(one, PLAN, 3).epoch == 3
