"""Custodians as real processes: what they wait for, remember, and refuse."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.conftest import (
    PARTIES,
    ROUNDS,
    RUN_ID,
    Deployment,
    Running,
    Start,
    StartCustodians,
    cloister,
    put_addresses,
)
from tests.support.registers import shown_by

from cloister.cli.host_time import utc_now
from cloister.custody.party_key import read_party_key
from cloister.federation.audit_records import RunFailed, encode_entry
from cloister.federation.audit_signing import ServerSigner
from cloister.plan.plan import plan_hash, read_plan
from cloister.ratls.epochs import key_digest
from cloister.ratls.identity import new_identity
from cloister.ratls.mark import Mark
from cloister.storage.audit_file import AuditFile

Copy = Callable[[str], Deployment]
ENDLESS = "1000000"


def start_node(start: Start, deployment: Deployment, party: str) -> Running:
    role = ("server",) if party == "aggregator" else ("worker", "--party", party)
    return start(*role, "--plan", str(deployment.plan), "--json")


def kill(*running: Running) -> None:
    """Ends processes as a power cut would."""
    for each in running:
        each.process.send_signal(signal.SIGKILL)
        each.process.wait()


@pytest.mark.long
def test_a_run_by_hand_waits_for_its_custodians_and_leaves_nothing_secret(
    deployment: Deployment, start: Start, start_custodians: StartCustodians
) -> None:
    before = {it: files_below(deployment.custodian(it)) for it in PARTIES}
    bob = start_node(start, deployment, "bob")
    waits = bob.wait_for("waiting-for-custodian")
    assert waits["code"] == "custodian-unreachable"
    custodians = start_custodians(deployment)
    assert libraries_of(custodians[0]) & {"numpy", "torch"} == set()
    others = [start_node(start, deployment, it) for it in ("aggregator", "alice")]
    for node in (*others, bob):
        assert node.finish()[0] == 0
    assert deployment.sealed_model.exists()
    for custodian in custodians:
        custodian.interrupt()
        assert custodian.finish()[0] == 130

    marks = set()
    for party in PARTIES:
        with deployment.register(party) as register:
            (mark,) = register.marks()
            (warrant,) = register.warrants()
        assert warrant.epoch == 1
        marks.add((mark.round, mark.state, mark.server_epoch, mark.server_key))
    assert {it[0] for it in marks} == {ROUNDS}
    assert len(marks) == 1, "all parties know of the same state"

    for party in PARTIES:
        log = Path("logs") / f"{party}-custodian.jsonl"
        assert files_below(deployment.custodian(party)) == before[party] | {log}
    assert_no_key_in_any_log(deployment)


def test_an_amendment_is_written_from_the_mark_and_signed_by_all(
    deployment: Deployment,
) -> None:
    """Registers and log are filled as nodes would: there is no run here."""
    mark = deposit_everywhere(deployment)
    successor = deployment.directory / "next.toml"
    amend = ("plan", "amend", str(deployment.plan))
    custodian = ("--custodian", str(deployment.custodian("alice")))
    unstopped = cloister(*amend, *custodian, "-o", str(successor), "--json")
    assert unstopped.returncode == 2
    assert json.loads(unstopped.stdout)["error"]["code"] == "amendment-unstopped"
    assert not successor.exists()
    log = ("--log", str(log_of_a_stop(deployment.directory / "copy.jsonl", mark)))
    done = cloister(*amend, *custodian, *log, "-o", str(successor), "--json")
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert written["round"] == ROUNDS
    assert written["state"] == f"sha256:{mark.state.hex()}"

    deployment.edit(successor, f"rounds = {ROUNDS}", "rounds = 50")
    done = cloister("plan", "sign", str(successor), "--all-here", "--yes")
    assert done.returncode == 0, done.stderr
    assert "everybody has signed" in done.stderr
    assert f"after round {ROUNDS}" in done.stderr
    done = cloister("custodian", "status", str(deployment.custodian("bob")), "--json")
    plans = json.loads(done.stdout)["plans"]
    assert sorted(it["state"] for it in plans) == ["active", "superseded"]

    done = cloister(*amend, *custodian, *log, "-o", str(successor))
    assert done.returncode == 2, "what people edited is not overwritten"
    assert "exists already" in done.stderr


def test_an_unsigned_plan_is_refused_with_the_names_of_who_is_missing(
    deployment: Deployment, start: Start
) -> None:
    deployment.consent("bob").unlink()
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 2
    assert "the plan is not signed by bob" in done.stderr
    assert "cloister plan sign" in done.stderr
    code, errors = start_node(start, deployment, "alice").finish()
    assert code == 2
    assert "the plan is not signed by bob" in errors
    done = cloister("plan", "check", str(deployment.plan), "--json")
    assert json.loads(done.stdout)["missing"] == ["bob"]
    assert [it["event"] for it in deployment.log("alice")] == ["failed"]


def test_a_plan_that_was_changed_after_signing_is_signed_by_nobody(
    deployment: Deployment,
) -> None:
    deployment.edit(deployment.plan, "batch_size = 64", "batch_size = 32")
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 2
    assert "not signed by aggregator, alice, bob" in done.stderr
    assert not deployment.run_directory.exists()


def test_a_withdrawn_consent_is_not_brought_back_by_the_host(
    deployment: Deployment, start: Start, start_custodians: StartCustodians
) -> None:
    consent = deployment.consent("bob")
    kept = consent.read_bytes()
    start_custodians(deployment, "bob")
    withdraw = ("plan", "withdraw", str(deployment.plan))
    bob = ("--custodian", str(deployment.custodian("bob")))
    asked = cloister(*withdraw, *bob)
    assert asked.returncode == 2, "nobody is there to ask"
    assert consent.exists()
    done = cloister(*withdraw, *bob, "--yes")
    assert done.returncode == 0, done.stderr
    assert not consent.exists()
    consent.write_bytes(kept)
    code, errors = start_node(start, deployment, "bob").finish()
    assert code == 3
    assert "consent to this plan is withdrawn" in errors
    with deployment.register("bob") as register:
        assert register.warrants() == ()


def test_a_custodian_with_another_key_is_refused(
    deployment: Deployment, start: Start, start_custodians: StartCustodians
) -> None:
    """A host sets up a custodian of its own where Alice's should be."""
    alice = deployment.custodian("alice")
    address = (alice / "custodian.toml").read_text().partition('address = "')[2]
    shutil.rmtree(alice)
    done = cloister("custodian", "init", str(alice), "--party", "alice", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["key"] not in deployment.plan.read_text()
    put_addresses(alice / "custodian.toml", {"address": address.partition('"')[0]})
    start_custodians(deployment, "alice")
    code, errors = start_node(start, deployment, "alice").finish()
    assert code == 3
    assert "the certificate of the custodian of 'alice' is refused" in errors
    assert "a signature by the party's key in the plan" in errors
    assert not deployment.events("alice", "warranted")


@pytest.mark.long
def test_epochs_and_marks_outlive_processes_that_were_killed(
    deployment: Deployment, start: Start, start_custodians: StartCustodians
) -> None:
    """One long run: a custodian dies, then a worker and the server, all at once."""
    deployment.edit(deployment.plan, f"rounds = {ROUNDS}", f"rounds = {ENDLESS}")
    deployment.sign()
    _, _, custodian = start_custodians(deployment)
    server, alice, bob = (start_node(start, deployment, it) for it in PARTIES)
    wait_for_mark(server, deployment, "aggregator")

    kill(custodian)
    seen = server.wait_for("round")["round"]
    assert isinstance(seen, int)
    while server.wait_for("round")["round"] != seen + 100:
        pass
    with deployment.register("bob") as register:
        assert [it.epoch for it in register.warrants()] == [1]

    start_custodians(deployment, "bob")
    kill(server, bob, alice)
    again, newer = (start_node(start, deployment, it) for it in ("aggregator", "bob"))
    assert newer.wait_for("warranted")["epoch"] == 2
    resumed = again.wait_for("state-resumed")["round"]
    assert isinstance(resumed, int)
    assert resumed > seen
    again.wait_for("listening")


@pytest.mark.long
def test_a_worker_without_a_platform_trains_where_the_plan_says_so(
    deployment: Deployment,
) -> None:
    """One-way attestation: Alice's node shows whose it is, and nothing about itself."""
    plan = deployment.plan.read_text()
    before, alice, after = plan.partition('name = "alice"')
    after = after.replace('admit = "attested"', 'admit = "identity"', 1)
    # No evidence says where her node runs.
    after = re.sub(r"platforms = .*\n", "", after, count=1)
    deployment.plan.write_text(before + alice + after)
    deployment.edit(
        deployment.plan, 'quorum = "all"', 'quorum = "all"\ntolerated_colluders = 0'
    )
    site = deployment.site("alice")
    before, _, after = site.read_text().partition("[platform]")
    kept = after[after.index("[collateral]") :]
    key = 'party_key = "../../custodians/alice/party-key.pem"'
    site.write_text(before + kept.replace("[custodian]", f"[custodian]\n{key}\n#"))
    shutil.rmtree(site.parent / "insecure-simulated-platform")
    # Nothing says what would hold a state key, so it gets none.
    deployment.drop_shares("alice")
    deployment.sign()
    done = cloister("run", str(deployment.plan))
    assert done.returncode == 0, done.stderr
    (unmeasured,) = deployment.events("alice", "node-unmeasured")
    assert unmeasured["admit"] == "identity"
    admitted = deployment.events("aggregator", "peer-admitted")
    assert {it["peer"]: it["admit"] for it in admitted} == {
        "alice": "identity",
        "bob": "attested",
    }
    assert deployment.sealed_model.exists()
    assert_no_key_in_any_log(deployment)


@pytest.mark.parametrize("option", ["--all-here", "--custodian"])
def test_signing_asks_and_says_who_is_missing(
    copy_deployment: Copy, option: str
) -> None:
    deployment = copy_deployment("deployment")
    shutil.rmtree(deployment.directory / "consents")
    chosen = [option]
    if option == "--custodian":
        chosen.append(str(deployment.custodian("alice")))
    sign = ("plan", "sign", str(deployment.plan), *chosen)
    done = cloister(*sign)
    assert done.returncode == 2
    assert "nobody to ask" in done.stderr
    assert not (deployment.directory / "consents").exists()
    done = cloister(*sign, "--yes", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    alone = option == "--custodian"
    assert said["signed"] == (["alice"] if alone else list(PARTIES))
    assert said["missing"] == (["aggregator", "bob"] if alone else [])


def test_whoever_signs_is_told_of_anothers_bad_consent_and_has_signed(
    copy_deployment: Callable[[str], Deployment],
) -> None:
    deployment = copy_deployment("deployment")
    deployment.consent("alice").unlink()
    deployment.consent("bob").write_bytes(b"{}")
    alice = ("--custodian", str(deployment.custodian("alice")), "--yes")
    sign = ("plan", "sign", str(deployment.plan), *alice)
    done = cloister(*sign)
    assert done.returncode == 0, done.stderr
    assert "signed by alice" in done.stderr
    assert "WARNING: the consent of bob beside the plan does not hold" in done.stderr
    assert "everybody has signed" not in done.stderr
    assert deployment.consent("alice").exists()
    said = json.loads(cloister(*sign, "--json").stdout)
    assert said["signed"] == ["aggregator", "alice"]
    assert said["missing"] == []
    assert said["refused"] == {"bob": "consent-malformed"}
    # Nothing is run with it.
    assert cloister("plan", "check", str(deployment.plan)).returncode == 4


def deposit_everywhere(deployment: Deployment) -> Mark:
    """Has every register remember a whole run; one key is every node's."""
    plan, key = read_plan(deployment.plan), new_identity().tls_spki
    state, at = bytes(range(32)), utc_now()
    mark = Mark(round=ROUNDS, state=state, server_epoch=1, server_key=key_digest(key))
    for party in PARTIES:
        with deployment.register(party) as register:
            shown = shown_by(plan, key, party=party)
            register.grant(shown, collateral=None, at=at, life=timedelta(hours=1))
            register.deposit(plan_hash(plan), tls_key=key, mark=mark, at=at)
    return mark


def log_of_a_stop(path: Path, mark: Mark) -> Path:
    """Writes how the log ends of a server that stopped at the mark's state."""
    end = RunFailed(code="server-stopped", reason="stopped", state=mark.state.hex())
    with AuditFile.open(path) as file:
        at_ms = int(utc_now().timestamp() * 1000)
        signer = ServerSigner(new_identity())
        file.append(encode_entry(end), at_ms=at_ms, signer=signer)
    return path


def wait_for_mark(server: Running, deployment: Deployment, party: str) -> None:
    """Has the server train until its party's custodian remembers a round."""
    while True:
        round_number = server.wait_for("round")["round"]
        assert isinstance(round_number, int)
        if round_number % 100:
            continue
        with deployment.register(party) as register:
            mark = register.mark(RUN_ID)
        if mark is not None and mark.round > 0:
            return


def files_below(directory: Path) -> set[Path]:
    return {it.relative_to(directory) for it in directory.rglob("*") if it.is_file()}


def libraries_of(running: Running) -> set[str]:
    """Returns the packages of which a process has native code in its memory."""
    maps = Path(f"/proc/{running.process.pid}/maps").read_text()
    marker = "site-packages/"
    return {
        line.partition(marker)[2].partition("/")[0]
        for line in maps.splitlines()
        if marker in line
    }


def assert_no_key_in_any_log(deployment: Deployment) -> None:
    logs = list(deployment.directory.rglob("*.jsonl"))
    assert len(logs) == 7  # with the audit log
    for party in PARTIES:
        pem = deployment.custodian(party) / "party-key.pem"
        key = read_party_key(pem).private_bytes_raw()
        needles = (
            key,
            key.hex().encode(),
            base64.b64encode(key)[:40],
            pem.read_bytes().splitlines()[1],
            b"PRIVATE KEY",
        )
        for log in logs:
            content = log.read_bytes()
            assert not any(needle in content for needle in needles), log.name
