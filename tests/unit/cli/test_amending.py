"""A plan is amended only where its server stopped at the state that is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.support.made_audit import AuditedRun, audited_federation, state_after
from tests.support.places import PORTS
from tests.support.plan_tree import Tree, plan_tree, toml_of

from cloister.cli.amending import check_stopped, log_beside
from cloister.cli.places import default_site_path
from cloister.errors import ConfigError, ProtocolError
from cloister.plan.plan import read_plan
from cloister.ratls.mark import Mark

STOPPED = ProtocolError("the server was stopped", code="server-stopped")


@pytest.fixture
def story(tmp_path: Path) -> AuditedRun:
    """A run of which two rounds are over; its server still works."""
    made = AuditedRun(audited_federation(tmp_path / "federation"), tmp_path / "log")
    made.begin()
    made.admit_all()
    made.train(2)
    return made


def refusal(story: AuditedRun, mark: Mark, *, log: Path | None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_stopped(story.federation.plan, mark, log)
    assert caught.value.code == "amendment-unstopped"
    return caught.value


def test_after_a_stop_in_good_order_the_plan_can_be_amended(story: AuditedRun) -> None:
    story.log.run_failed(STOPPED, state=state_after(2))
    story.log.close()
    mark = story.mark()
    assert check_stopped(story.federation.plan, mark, story.path) is mark


def test_a_run_that_is_over_can_be_given_more_rounds(story: AuditedRun) -> None:
    story.train()
    story.seal()
    story.log.close()
    mark = story.mark()
    assert check_stopped(story.federation.plan, mark, story.path) is mark


def test_a_server_that_was_killed_is_started_and_stopped_first(
    story: AuditedRun,
) -> None:
    story.log.close()
    mark = story.mark()
    error = refusal(story, mark, log=story.path)
    assert "ends with round" in error.got
    assert "Start the server once more" in error.remedy
    assert "the custodian of aggregator" in error.remedy
    # It is, and goes on from the state that its host kept.
    story.begin(epoch=2, completed=2, known=mark)
    assert "server-introduced" in refusal(story, mark, log=story.path).got
    story.log.run_failed(STOPPED, state=state_after(2))
    story.log.close()
    assert check_stopped(story.federation.plan, mark, story.path) is mark


@pytest.mark.parametrize(
    ("end", "got"),
    [
        (lambda it: it.log.run_failed(STOPPED, state=None), "no state"),
        (
            lambda it: it.log.run_failed(STOPPED, state=state_after(2)),
            state_after(2).hex(),
        ),
    ],
    ids=["a state that is not kept", "a state that the custodian did not hear of"],
)
def test_a_stop_at_another_state_than_the_known_one_is_none(
    story: AuditedRun, end: Callable[[AuditedRun], None], got: str
) -> None:
    known = msgspec.structs.replace(story.mark(), round=1, state=state_after(1))
    end(story)
    story.log.close()
    error = refusal(story, known, log=story.path)
    assert error.got.endswith(got)
    assert state_after(1).hex() in error.expected


def test_without_a_log_nobody_knows(story: AuditedRun) -> None:
    mark = story.mark()
    for log in (None, story.path.with_name("another")):
        assert "--log FILE" in refusal(story, mark, log=log).remedy
    story.path.write_bytes(b"something else")
    assert "does not end with a record" in refusal(story, mark, log=story.path).got


def test_the_log_is_found_where_the_servers_site_lies_beside_the_plan(
    tmp_path: Path,
) -> None:
    path = tmp_path / "plan.toml"
    path.write_bytes(toml_of(plan_tree()))
    plan = read_plan(path)
    assert log_beside(path, plan) is None
    site = default_site_path(path, "aggregator")
    site.parent.mkdir(parents=True)
    tree: Tree = {
        "party": "aggregator",
        "platform": {"kind": "simulated-tdx", "directory": "platform"},
        "collateral": {"directory": "collateral", "trust_root": "root.der"},
        "paths": {"runs": "../../runs"},
        "custodian": {"address": "127.0.0.1:7003"},
        "addresses": {**PORTS},
    }
    site.write_bytes(toml_of(tree))
    run = f"{plan.plan.name}.{plan.plan.run}"
    assert log_beside(path, plan) == tmp_path / "runs" / run / "audit.jsonl"
    site.write_text("party = 1")
    with pytest.raises(ConfigError):
        log_beside(path, plan)
