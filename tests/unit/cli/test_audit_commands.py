"""`cloister audit verify` and `show`, over logs that real servers wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner
from tests.support.custody_audit import Story
from tests.support.federation_in_memory import make_federation
from tests.support.keyrings import new_safe
from tests.support.made_audit import AuditedRun, audited_federation, text_of
from tests.support.plan_tree import hold_shares

from cloister.cli.commands.audit.show import command as show
from cloister.cli.commands.audit.verify import command as verify
from cloister.custody.audit_export import sign_head
from cloister.custody.register import Register
from cloister.errors import (
    CloisterError,
    ConfigError,
    StorageError,
    VerificationError,
)
from cloister.federation.audit_records import NodeRefused
from cloister.plan.keys import format_party_key
from cloister.ratls.signed_head import parse_head


def called(command: click.Command, *arguments: object) -> str:
    """Returns what a command says on stdout; its error is raised."""
    done = CliRunner().invoke(
        command, [str(it) for it in arguments], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done.stdout


def refusal(command: click.Command, *arguments: object) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        called(command, *arguments)
    return caught.value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AuditedRun:
    """A run in a directory of its own, with its plan and alice's head beside it."""
    directory = tmp_path_factory.mktemp("deployment")
    inside = directory / "run"
    inside.mkdir()
    made = AuditedRun(audited_federation(directory), inside / "audit.jsonl")
    made.whole()
    (directory / "plan.toml").write_bytes(text_of(made.federation.plan))
    head = parse_head(made.head("alice").payload)
    (directory / "alice.head").write_bytes(
        sign_head(head, key=made.federation.keys["alice"])
    )
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A custodian's exported log, and its party's key."""
    federation = make_federation(
        tmp_path_factory.mktemp("shares"),
        change=lambda tree: hold_shares(tree, "aggregator", "alice"),
    )
    safe = new_safe(tmp_path_factory.mktemp("custodian"))
    with Register.open(safe.database) as register:
        story = Story(federation=federation, register=register)
        story.consent()
        safe.keys(register).add("data", label="scans", at=story.at)
        story.meet(register.party)
        share = federation.plan.find_party(register.party).state_share
        story.release(register.party, str(share))
        story.refuse(register.party)
        path = tmp_path_factory.mktemp("export") / "log.jsonl"
        path.write_bytes(story.log())
        return path, f"{register.party}={format_party_key(story.key)}"


def test_a_log_without_anchors_is_said_to_be_compared_with_nothing(
    run: AuditedRun,
) -> None:
    said = called(verify, run.path.parent)
    assert said.startswith("HOLDS: 10 records of run blobs/a")
    assert "SIMULATED" in said
    assert "NOT COMPARED with anything you brought: aggregator, alice, bob" in said
    for key in run.federation.keys.values():
        assert format_party_key(key) in said
    assert "NOT PROVEN: all of it" in said
    assert "by the clock of the server's host" in said
    assert "3 of 3 completed" in said


def test_with_plan_and_head_all_is_proven(run: AuditedRun) -> None:
    directory = run.path.parent.parent
    said = called(
        verify,
        run.path,
        "--plan",
        directory / "plan.toml",
        "--head",
        directory / "alice.head",
    )
    assert "NOT COMPARED" not in said
    assert "NOT PROVEN" not in said
    assert "the plan is the one you brought" in said
    assert "proven up to record 9 (round 3) by the custodian of alice" in said


def test_a_head_under_a_key_that_nobody_compared_is_said_to_be_one(
    run: AuditedRun,
) -> None:
    head = run.path.parent.parent / "alice.head"
    said = called(verify, run.path, "--head", head)
    assert "IF that is its key" in said
    assert "bring --plan or --key" in said
    assert "NOT PROVEN: all of it" in said
    end = json.loads(called(verify, run.path, "--head", head, "--json"))["end"]
    assert (end["proven"], end["unproven_records"]) == (False, 10)
    assert [it["key_compared"] for it in end["proofs"]] == [False]


def test_one_known_key_vouches_for_the_plan_and_no_more(run: AuditedRun) -> None:
    alices = format_party_key(run.federation.keys["alice"])
    said = called(verify, run.path, "--key", f"alice={alices}")
    assert "compared with yours: alice" in said
    assert "NOT COMPARED with anything you brought: aggregator, bob" in said
    assert "alice consented to the plan that names them" in said
    everybodys = [
        f"--key={name}={format_party_key(key)}"
        for name, key in run.federation.keys.items()
    ]
    assert "NOT COMPARED" not in called(verify, run.path, *everybodys)


def test_machines_read_the_same(run: AuditedRun) -> None:
    alices = format_party_key(run.federation.keys["alice"])
    said = json.loads(called(verify, run.path, "--key", f"alice={alices}", "--json"))
    assert said["holds"]
    assert said["simulated"]
    assert said["anchors"]["keys_compared"] == ["alice"]
    assert set(said["anchors"]["keys_not_compared"]) == {"aggregator", "bob"}
    assert said["end"]["proven"] is False
    assert said["end"]["unproven_records"] == said["records"] == 10
    assert said["rounds"] == {
        "completed": 3,
        "planned": 3,
        "recorded": 3,
        "participants": {
            "by_the_plans_rule": True,
            "rule": {"workers": 2, "seats": 2, "sample": None, "quorum": "all"},
            "rounds": 3,
            "least": 2,
            "most": 2,
            "rounds_of": {"alice": 3, "bob": 3},
            "absence_explained": True,
        },
    }
    assert [it["party"] for it in said["admissions"]] == ["alice", "bob"]
    assert said["model"]["compared"] is False
    assert said["model"]["reports"] == 2
    assert said["time"]["clock"] == "the server's host"


def test_what_does_not_agree_ends_in_an_error(run: AuditedRun, tmp_path: Path) -> None:
    bobs = format_party_key(run.federation.keys["bob"])
    error = refusal(verify, run.path, "--key", f"alice={bobs}")
    assert (type(error), error.code) == (VerificationError, "audit-anchor")
    lines = run.path.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[:-1]))
    error = refusal(verify, cut, "--head", run.path.parent.parent / "alice.head")
    assert (type(error), error.code) == (VerificationError, "audit-cut")
    cut.write_bytes(b"".join(lines[:4] + lines[5:]))
    for command in (verify, show):
        error = refusal(command, cut)
        assert (type(error), error.code) == (VerificationError, "audit-order")
        assert "line 5" in error.what


def test_what_cannot_be_read_is_said_to_be_that(tmp_path: Path) -> None:
    empty, other = tmp_path / "empty", tmp_path / "other"
    empty.write_bytes(b"")
    other.write_bytes(b"not a log\n")
    for path, code in (
        (tmp_path / "nowhere", "audit-unreadable"),
        (tmp_path, "audit-unreadable"),
        (empty, "audit-empty"),
        (other, "audit-malformed"),
    ):
        for command in (verify, show):
            error = refusal(command, path)
            assert (type(error), error.code) == (StorageError, code), path


def test_arguments_are_used_or_refused(run: AuditedRun, tmp_path: Path) -> None:
    key = format_party_key(run.federation.keys["alice"])
    for arguments, code in (
        (("--key", "alice"), "audit-key"),
        (("--key", f"../alice={key}"), "name-invalid"),
        (("--key", "alice=ed25519:00"), "party-key-invalid"),
        (("--key", f"alice={key}", "--key", f"alice={key}"), "audit-key"),
        (("--head", tmp_path / "nowhere"), "file-unreadable"),
    ):
        error = refusal(verify, run.path, *arguments)
        assert (type(error), error.code) == (ConfigError, code)
    (tmp_path / "head").write_bytes(b"{}\n")
    error = refusal(verify, run.path, "--head", tmp_path / "head")
    assert error.code == "audit-head-malformed"


def test_the_model_beside_a_log_is_compared(run: AuditedRun, tmp_path: Path) -> None:
    sealed = run.entries()[-1]
    log = tmp_path / "audit.jsonl"
    log.write_bytes(run.path.read_bytes())
    model = tmp_path / "model.safetensors.age"
    model.write_bytes(b"another model")
    error = refusal(verify, tmp_path)
    assert (error.code, error.expected) == ("audit-model", "5" * 64)
    # A log alone is compared with none.
    assert "not compared with any file" in called(verify, log)
    found = hashlib.sha256(model.read_bytes()).hexdigest()
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-1]))
    error = refusal(verify, tmp_path)
    assert (type(error), error.code) == (VerificationError, "audit-model-unnamed")
    run_again = AuditedRun(run.federation, log)
    run_again.server, run_again.clock = run.server, run.clock
    log.write_bytes(run_again.lied(msgspec.structs.replace(sealed, sha256=found)))
    assert "is that model" in called(verify, tmp_path)


def test_a_restart_is_told_with_what_may_be_cut_there(tmp_path: Path) -> None:
    run = AuditedRun(audited_federation(tmp_path), tmp_path / "audit.jsonl")
    run.begin()
    run.log.close()
    assert "MAY BE CUT" not in called(verify, run.path)
    run.begin(epoch=2)
    run.log.close()
    said = called(verify, run.path)
    assert "did not end at record 2 by its own word: what it wrote" in said
    assert "after its custodian's last word MAY BE CUT there" in said
    first, second = json.loads(called(verify, run.path, "--json"))["servers"]
    assert first["cut_after"] is None
    assert second["cut_after"]["record"] == 2


def test_a_last_line_that_is_not_whole_is_left_out_and_told(
    run: AuditedRun, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_bytes(run.path.read_bytes() + b'{"payload":"e')
    said = called(verify, log)
    assert "HOLDS: 10 records" in said
    assert "13 bytes were not looked at" in said
    assert json.loads(called(verify, log, "--json"))["unfinished_bytes"] == 13


def test_what_happened_is_told_in_sentences(run: AuditedRun) -> None:
    said = called(show, run.path.parent)
    first = said.splitlines()[0]
    assert "verified" in first
    assert "SIMULATED" in first
    flat = " ".join(said.split())
    assert "not compared with anything, and its end is not proven" in flat
    assert "Rounds 1 to 3 were" in flat
    assert "6-8" in flat
    assert "began the log" in flat
    assert run.federation.plan.recipients[0] in said.replace("\n", "").replace(" ", "")


def test_every_round_is_told_where_that_is_wanted(run: AuditedRun) -> None:
    lines = json.loads(called(show, run.path, "--rounds", "--json"))["records"]
    assert [(it["first"], it["last"]) for it in lines] == [(n, n) for n in range(10)]
    folded = json.loads(called(show, run.path, "--json"))["records"]
    assert [(it["first"], it["last"]) for it in folded][-2:] == [(6, 8), (9, 9)]
    assert folded[6]["who"] == "alice, bob"


def test_words_in_a_log_do_nothing_to_a_terminal(
    run: AuditedRun, tmp_path: Path
) -> None:
    log = tmp_path / "audit.jsonl"
    log.write_bytes(run.path.read_bytes())
    copy = AuditedRun(run.federation, log)
    copy.server, copy.clock = run.server, run.clock
    log.write_bytes(
        copy.lied(
            NodeRefused(
                role="worker",
                party="alice",
                where="training",
                code="x",
                reason="\x1b[2Jaway [bold red]with\r\nit",
                testimony=None,
            )
        )
    )
    said = called(show, log)
    assert "\x1b" not in said
    assert "\r" not in said
    assert "[bold red]with" in said


def test_a_custodians_log_is_verified_by_the_same_command(
    exported: tuple[Path, str],
) -> None:
    path, key = exported
    alone = called(verify, path)
    assert "of the custodian of" in alone
    assert "NOT COMPARED with anything you brought" in alone
    assert "NOT PROVEN" in alone
    assert "SIMULATED" in alone
    compared = called(verify, path, "--key", key)
    assert f"compared with yours: {key.partition('=')[2]}" in compared
    said = json.loads(called(verify, path, "--key", key, "--json"))
    assert (said["kind"], said["key_compared"]) == ("custodian", True)
    assert len(said["releases"]) == said["refusals"] == 1


def test_a_custodians_log_under_another_key_is_refused(
    exported: tuple[Path, str], run: AuditedRun
) -> None:
    path, key = exported
    party = key.partition("=")[0]
    other = format_party_key(run.federation.keys["bob"])
    error = refusal(verify, path, "--key", f"{party}={other}")
    assert (type(error), error.code) == (VerificationError, "audit-signature")
    error = refusal(verify, path, "--key", f"nobody={other}")
    assert (type(error), error.code) == (ConfigError, "audit-key-unused")
    head = run.path.parent.parent / "alice.head"
    error = refusal(verify, path, "--head", head)
    assert (type(error), error.code) == (ConfigError, "audit-head-unused")


def test_a_custodians_log_is_told_in_sentences(exported: tuple[Path, str]) -> None:
    path, _ = exported
    lines = json.loads(called(show, path, "--json"))["records"]
    told = " ".join(it["what"] for it in lines)
    for words in (
        "began its records",
        "consented to the plan",
        "was added",
        "proved itself and was warranted",
        "Released to its",
        "was refused",
    ):
        assert words in told, words
    assert "Custodian of" in called(show, path).splitlines()[0]
