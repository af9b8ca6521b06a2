from __future__ import annotations

from tests.support.federation_in_memory import Federation
from tests.support.plan_tree import add_recipient, plan_tree, toml_of

from cloister.cli.run_view import RunView
from cloister.plan.plan import parse_plan


def state(view: RunView, party: str) -> str:
    return view.parties[party]["state"]


def test_a_custodians_events_do_not_pass_for_its_nodes(federation: Federation) -> None:
    view = RunView(federation.plan)
    view.take({"event": "round", "party": "alice", "round": 1})
    for kind in ("failed", "interrupted", "node-measured"):
        view.take({"event": kind, "party": "alice", "service": "custodian"})
    assert state(view, "alice") == "training"


def test_a_renewed_warrant_does_not_look_like_a_start(federation: Federation) -> None:
    view = RunView(federation.plan)
    view.take({"event": "waiting-for-custodian", "party": "alice"})
    assert state(view, "alice") == "waiting for its custodian"
    for kind, shown in (
        ("warranted", "warranted"),
        ("round", "training"),
        ("warranted", "training"),
    ):
        view.take({"event": kind, "party": "alice"})
        assert state(view, "alice") == shown


def test_a_worker_without_evidence_is_never_called_attested(
    federation: Federation,
) -> None:
    view = RunView(federation.plan)
    for peer, admit in (("alice", "identity"), ("bob", "attested")):
        view.take(
            {
                "event": "peer-admitted",
                "party": "aggregator",
                "peer": peer,
                "admit": admit,
            }
        )
    view.take({"event": "node-unmeasured", "party": "alice"})
    assert view.parties["alice"]["attested"] == "no, by its key"
    assert view.parties["alice"]["tee"] == "none"
    assert view.parties["bob"]["attested"] == "by aggregator"


def test_who_attested_the_server_is_counted(federation: Federation) -> None:
    view = RunView(federation.plan)
    for party, shown in (
        ("alice", "by 1 of 2 workers"),
        ("alice", "by 1 of 2 workers"),
        ("bob", "by all workers"),
    ):
        view.take({"event": "server-attested", "party": party})
        assert view.parties["aggregator"]["attested"] == shown


def test_a_loss_that_nobody_is_told_is_not_shown(federation: Federation) -> None:
    view = RunView(federation.plan)
    for loss, shown in ((0.5, "loss 0.5000"), (None, None), (2.0, "loss 2.0000")):
        view.take({"event": "round", "party": "aggregator", "round": 1, "loss": loss})
        assert ("loss" in view.line()) == (shown is not None)
        assert shown is None or shown in view.line()


def test_a_recipient_has_no_part_in_a_run() -> None:
    view = RunView(parse_plan(toml_of(add_recipient(plan_tree(), "rita"))))
    assert list(view.parties) == ["aggregator", "alice", "bob"]
    view.take({"event": "node-measured", "party": "rita"})
    assert list(view.parties) == ["aggregator", "alice", "bob"]


def test_a_run_that_is_resumed_shows_how_far_it_is(federation: Federation) -> None:
    view = RunView(federation.plan)
    view.take({"event": "state-resumed", "party": "aggregator", "round": 7})
    assert view.line().startswith("round 7/")
    assert state(view, "aggregator") == "resumed"
    view.take({"event": "restarted", "party": "alice", "signal": "SIGKILL"})
    assert state(view, "alice") == "was killed; started again"
    view.take({"event": "restarted", "party": "bob", "service": "custodian"})
    assert state(view, "bob") == "starting"
