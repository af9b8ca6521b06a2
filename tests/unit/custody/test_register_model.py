"""The register against a model of it in plain Python, over stories nobody wrote."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from tests.support.registers import (
    MINUTE,
    PARTY,
    START,
    SignedPlan,
    deposit,
    grant,
    key_of_node,
    mark_of,
    signed_plan,
    successor_of,
)
from typing_extensions import override

from cloister.custody.register import Register
from cloister.errors import CloisterError
from cloister.plan.digest import digest_bytes, format_digest
from cloister.ratls.mark import Mark

FIRST = signed_plan()
SECOND = successor_of(FIRST, mark_of(2))
PLANS = (
    FIRST,
    signed_plan(seed=8),
    signed_plan(run="b"),
    SECOND,
    successor_of(FIRST, mark_of(2, "y")),
    successor_of(FIRST, mark_of(1)),
    successor_of(SECOND, mark_of(3)),
)
# Where most plans are refused at once, no story comes far: None is the plan in force.
plans = st.sampled_from((None, None, None, None, *PLANS))
nodes = st.integers(1, 5)
# None is the newest node.
depositors = st.sampled_from((None, None, None, None, None, 1, 2))
# A mark as it differs from the one before: by rounds, state, server epoch and key.
steps = st.sampled_from(
    (
        *4 * ((1, "x", 0, "server"),),
        (0, "x", 0, "server"),
        (0, "x", 1, "server"),
        (1, "x", 1, "another"),
        (1, "y", 0, "server"),
        (0, "y", 0, "server"),
        (-1, "x", 0, "server"),
        (1, "x", -1, "server"),
        (1, "x", 0, "another"),
    )
)


class Refused(Exception):  # noqa: N818 - an outcome, not a fault
    """What the model says instead of an answer."""


@dataclass
class Model:
    """What the register is to do, said another way: lists and dictionaries."""

    states: dict[bytes, str] = field(default_factory=dict)
    newest_plan: dict[str, SignedPlan] = field(default_factory=dict)
    keys: dict[str, list[int]] = field(default_factory=dict)
    plan_of_newest: dict[str, bytes] = field(default_factory=dict)
    marks: dict[str, Mark] = field(default_factory=dict)
    servers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    newest_minute: int = 0

    def adopt(self, plan: SignedPlan, minute: int) -> None:
        self._check_clock(minute)
        run = plan.plan.run_id
        before = self.newest_plan.get(run)
        if self.states.get(plan.hash) == "active":
            return
        if before is not None and before.hash != plan.hash:
            if self.keys.get(run):
                self._check_succession(before, plan)
            self.states[before.hash] = "superseded"
        self.states[plan.hash] = "active"
        self.newest_plan[run] = plan
        self._note(minute)

    def _check_succession(self, before: SignedPlan, plan: SignedPlan) -> None:
        named = plan.plan.predecessor
        if named is None:
            raise Refused("run-taken")
        if named.plan != format_digest(before.hash):
            raise Refused("amendment-predecessor")
        mark = self.marks.get(plan.plan.run_id)
        if mark is None or named.round > mark.round:
            return
        if (named.round, digest_bytes(named.state)) != (mark.round, mark.state):
            raise Refused("amendment-state")

    def withdraw(self, plan: SignedPlan, minute: int) -> None:
        state = self.states.get(plan.hash)
        if state is None:
            raise Refused("plan-not-consented")
        if state == "superseded":
            raise Refused("plan-superseded")
        if state == "active":
            self.states[plan.hash] = "withdrawn"
            self._note(minute)

    def grant(self, plan: SignedPlan, node: int, minute: int) -> int:
        self._check_clock(minute)
        self._check_active(plan)
        run = plan.plan.run_id
        keys = self.keys.get(run, [])
        if keys and keys[-1] == node:
            if self.plan_of_newest[run] != plan.hash:
                raise Refused("warrant-other-plan")
        elif node in keys:
            raise Refused("warrant-superseded")
        else:
            keys = [*keys, node]
            self.keys[run] = keys
            self.plan_of_newest[run] = plan.hash
        self._note(minute)
        return len(keys)

    def deposit(self, plan: SignedPlan, node: int, mark: Mark, minute: int) -> None:
        self._check_clock(minute)
        self._check_active(plan)
        run = plan.plan.run_id
        if self.keys.get(run, [])[-1:] != [node]:
            raise Refused("warrant-superseded")
        if self.plan_of_newest[run] != plan.hash:
            raise Refused("warrant-other-plan")
        epoch, key = self.servers.get(run, (0, b""))
        if mark.server_epoch < epoch:
            raise Refused("server-epoch-old")
        if mark.server_epoch == epoch and mark.server_key != key:
            raise Refused("server-forked")
        known = self.marks.get(run)
        if known is not None:
            if mark.round < known.round:
                raise Refused("mark-old")
            if mark.round == known.round and mark.state != known.state:
                raise Refused("mark-forked")
        self.marks[run] = mark
        self.servers[run] = (mark.server_epoch, mark.server_key)
        self._note(minute)

    def rewind(self, run: str, minute: int) -> Mark | None:
        if run not in self.newest_plan:
            raise Refused("run-unknown")
        if run in self.marks:
            self._note(minute)
        return self.marks.pop(run, None)

    def _check_active(self, plan: SignedPlan) -> None:
        state = self.states.get(plan.hash, "not-consented")
        if state != "active":
            raise Refused(f"plan-{state}")

    def _check_clock(self, minute: int) -> None:
        if minute < self.newest_minute - 10:
            raise Refused("clock-behind")

    def _note(self, minute: int) -> None:
        self.newest_minute = max(minute, self.newest_minute)


class Stories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        directory = self.cleanup.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(directory) / "custodian.sqlite"
        self.register = Register.create(self.path, party=PARTY)
        self.model = Model()
        self.minute = 0

    @override
    def teardown(self) -> None:
        self.register.close()
        self.cleanup.close()

    def same(self, real: Callable[[], object], wanted: Callable[[], object]) -> None:
        try:
            expected: object = wanted()
        except Refused as refused:
            expected = str(refused)
        try:
            got: object = real()
        except CloisterError as error:
            got = error.code
        assert got == expected

    @property
    def now(self) -> datetime:
        return START + self.minute * MINUTE

    def chosen(self, plan: SignedPlan | None) -> SignedPlan:
        return plan or self.model.newest_plan["blobs/a"]

    @initialize()
    def begin(self) -> None:
        self.register.adopt(FIRST.text, FIRST.consent, at=self.now)
        self.model.adopt(FIRST, self.minute)
        self.grant(None, 1)

    @rule(by=st.sampled_from((-15, -9, 1, 12, 12)))
    def set_clock(self, by: int) -> None:
        self.minute = max(self.minute + by, 0)

    @rule(plan=st.sampled_from(PLANS))
    def adopt(self, plan: SignedPlan) -> None:
        at = self.now

        def real() -> None:
            self.register.adopt(plan.text, plan.consent, at=at)

        self.same(real, lambda: self.model.adopt(plan, self.minute))

    @rule(plan=st.sampled_from(PLANS))
    def withdraw(self, plan: SignedPlan) -> None:
        at = self.now
        self.same(
            lambda: self.register.withdraw(plan.hash, at=at),
            lambda: self.model.withdraw(plan, self.minute),
        )

    @rule(some=plans, node=nodes)
    def grant(self, some: SignedPlan | None, node: int) -> None:
        at, plan = self.now, self.chosen(some)
        self.same(
            lambda: grant(self.register, plan, node, at=at).epoch,
            lambda: self.model.grant(plan, node, self.minute),
        )

    @rule(some=plans, by=depositors, step=steps)
    def deposit(
        self, some: SignedPlan | None, by: int | None, step: tuple[int, str, int, str]
    ) -> None:
        at, plan = self.now, self.chosen(some)
        node = by or self.model.keys.get(plan.plan.run_id, [1])[-1]
        mark = self.mark_after(plan.plan.run_id, step)

        def real() -> None:
            assert deposit(self.register, plan, node, mark, at=at) == mark

        self.same(real, lambda: self.model.deposit(plan, node, mark, self.minute))

    def mark_after(self, run: str, step: tuple[int, str, int, str]) -> Mark:
        further, state, newer, server = step
        known = self.model.marks.get(run)
        completed = (known.round if known else 0) + further
        epoch = self.model.servers.get(run, (2, b""))[0] + newer
        return mark_of(max(completed, 0), state, epoch=max(epoch, 1), server=server)

    @precondition(lambda self: self.model.marks)
    @rule(run=st.sampled_from(("blobs/a", "blobs/b")))
    def rewind(self, run: str) -> None:
        at = self.now
        self.same(
            lambda: self.register.rewind(run, at=at),
            lambda: self.model.rewind(run, self.minute),
        )

    @rule()
    def restart(self) -> None:
        self.register.close()
        self.register = Register.open(self.path)

    @invariant()
    def shows_what_the_model_has(self) -> None:
        shown = {row.plan_hash: row.state for row in self.register.plans()}
        assert shown == self.model.states
        assert [(r.run_id, r.epoch, r.tls_key) for r in self.register.warrants()] == [
            (run, epoch, key_of_node(node))
            for run in sorted(self.model.keys)
            for epoch, node in enumerate(self.model.keys[run], 1)
        ]
        assert {
            row.run_id: row.mark for row in self.register.marks()
        } == self.model.marks


TestStories = Stories.TestCase
TestStories.settings = settings(max_examples=60, stateful_step_count=40)
