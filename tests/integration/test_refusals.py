"""Bad input and faults: one clear error, the right exit code, nothing left behind."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.integration.conftest import (
    LIMIT_SECONDS,
    PARTIES,
    Deployment,
    Running,
    Start,
    StartCustodians,
    cloister,
    share_of,
)

from cloister.cli.interpreter import node_command
from cloister.plan.plan import read_plan
from cloister.workloads.digits import DigitStream

Copy = Callable[[str], Deployment]
Break = Callable[[Deployment], None]


def assert_refused(
    deployment: Deployment, *, code: int, words: tuple[str, ...]
) -> None:
    """Runs the plan and expects one error with these words and no model."""
    done = cloister("run", str(deployment.plan))
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not deployment.sealed_model.exists()
    if deployment.run_directory.exists():
        assert deployment.leftovers() == []


def assert_worker_refused(
    deployment: Deployment, party: str, *, code: int, words: tuple[str, ...]
) -> None:
    """Starts one worker, which must end before it needs a custodian."""
    done = cloister("worker", "--party", party, "--plan", str(deployment.plan))
    assert_refusal(done.returncode, done.stderr, code=code, words=words)


def assert_refusal(
    returned: int, errors: str, *, code: int, words: tuple[str, ...]
) -> None:
    """Expects one error with these words of a worker that waited for nobody."""
    assert returned == code, errors
    assert errors.count("error:") == 1
    assert "Traceback" not in errors
    for word in words:
        assert word in errors
    assert "waiting" not in errors


def test_a_node_whose_task_differs_by_a_byte_gets_no_warrant(
    copy_deployment: Copy, start: Start, start_custodians: StartCustodians
) -> None:
    honest, other = copy_deployment("honest"), copy_deployment("other")
    task = other.directory / "task.py"
    task.write_bytes(task.read_bytes() + b"\n")
    commands = {"bob": ("worker", "--party", "bob"), "aggregator": ("server",)}
    start_custodians(honest, *commands)
    nodes = {
        party: start(*command, "--plan", str(other.plan), "--json")
        for party, command in commands.items()
    }
    for party, node in nodes.items():
        code, errors = node.finish()
        assert code == 3
        assert "refused this node: the peer runs other code" in errors
        assert other.events(party, "own-evidence-unwanted")
        (refused,) = (
            it for it in honest.custodian_log(party) if it["event"] == "node-refused"
        )
        assert refused["code"] == "appraisal-measurement"
        with honest.register(party) as register:
            assert register.warrants() == (), "no epoch is spent on a refused node"
    assert not other.sealed_model.exists()


def test_another_plan_is_refused_by_its_hash(
    copy_deployment: Copy, start: Start, start_custodians: StartCustodians
) -> None:
    """Bob's party signed another plan: its custodian warrants him, the server not."""
    honest, other = copy_deployment("honest"), copy_deployment("other")
    other.edit(other.plan, "rounds = 40", "rounds = 41")
    for deployment in (honest, other):
        # With shares he would come no further than to the custodians that hold them.
        plan = deployment.plan
        plan.write_text(re.sub(r"state_share = .*\n", "", plan.read_text()))
        for party in PARTIES:
            deployment.drop_shares(party)
        deployment.sign()
    start_custodians(honest, "aggregator")
    start_custodians(other, "bob")
    server = start("server", "--plan", str(honest.plan), "--json")
    bob = start("worker", "--party", "bob", "--plan", str(other.plan), "--json")
    code, errors = bob.finish()
    assert code == 3
    assert "another plan" in errors
    server.interrupt()
    assert server.finish()[0] == 130


@pytest.mark.long
def test_a_node_of_another_plan_gets_no_share_and_waits_no_longer_than_it_may(
    copy_deployment: Copy, start: Start, start_custodians: StartCustodians
) -> None:
    """The others might sign his plan yet; when his patience is over, he ends."""
    honest, other = copy_deployment("honest"), copy_deployment("other")
    other.edit(other.plan, "rounds = 40", "rounds = 41")
    other.sign()
    other.edit(other.site("bob"), "patience_seconds = 120.0", "patience_seconds = 2.0")
    start_custodians(honest, "aggregator", "alice")
    start_custodians(other, "bob")
    bob = start("worker", "--party", "bob", "--plan", str(other.plan), "--json")
    code, errors = bob.finish()
    assert code == 3
    assert "the party did not consent to this plan" in errors
    waits = other.events("bob", "waiting-for-share")
    assert {(it["share_of"], it["code"]) for it in waits} == {
        ("aggregator", "plan-not-consented"),
        ("alice", "plan-not-consented"),
    }
    assert len(waits) == 2


def test_an_unknown_plan_key_is_named_with_what_it_may_have_meant(
    deployment: Deployment,
) -> None:
    deployment.edit(deployment.plan, "batch_size", "batchsize")
    assert_refused(
        deployment, code=2, words=("unknown key 'batchsize'", "'batch_size'?")
    )


def test_a_plan_value_of_the_wrong_type_is_named(deployment: Deployment) -> None:
    deployment.edit(deployment.plan, "rounds = 40", 'rounds = "forty"')
    assert_refused(deployment, code=2, words=("training.rounds", "`int`", "`str`"))


def without(name: str) -> Break:
    return lambda deployment: (deployment.directory / name).unlink()


def with_data_of_another(deployment: Deployment) -> None:
    deployment.seal("bob", share_of("alice"))


def with_a_task_that_fails(deployment: Deployment) -> None:
    task = deployment.directory / "task.py"
    task.write_text(task.read_text().replace("import numpy as np", "import nunpy"))


# What is done to a deployment, and how bob's node then refuses to begin.
BROKEN: dict[str, tuple[Break, int, tuple[str, ...]]] = {
    **{
        name: (without(name), 2, (name, "No such file"))
        for name in ("plan.toml", "task.py", "parties/bob/site.toml")
    },
    "no data": (
        lambda deployment: deployment.data("bob").unlink(),
        2,
        ("data.sealed",),
    ),
    "data that the plan does not pin": (
        with_data_of_another,
        4,
        ("not what the plan pins",),
    ),
    "a task that fails": (
        with_a_task_that_fails,
        2,
        ("task.py failed", "line 10", "nunpy"),
    ),
}


@pytest.fixture(scope="module")
def broken(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Running]]:
    """Bob's nodes of all broken deployments, which start at once and need nobody."""
    directory = tmp_path_factory.mktemp("broken")
    nodes = {}
    for number, (what, (change, _, _)) in enumerate(BROKEN.items()):
        place = directory / str(number)
        shutil.copytree(template, place)
        change(Deployment(place))
        command = ("worker", "--party", "bob", "--plan", str(place / "plan.toml"))
        nodes[what] = Running(node_command(command))
    yield nodes
    for node in nodes.values():
        node.close()


@pytest.mark.parametrize("what", BROKEN)
def test_what_keeps_a_node_from_beginning_is_named(
    broken: Mapping[str, Running], what: str
) -> None:
    _, code, words = BROKEN[what]
    assert_refusal(*broken[what].finish(), code=code, words=words)


@pytest.mark.long
def test_a_truncated_data_set_ends_the_run_and_names_the_party(
    deployment: Deployment,
) -> None:
    path = deployment.data("alice")
    path.write_bytes(path.read_bytes()[:-1])
    assert_refused(deployment, code=4, words=("alice:", "data.sealed"))


def test_records_that_the_task_does_not_know_are_refused(
    deployment: Deployment, start_custodians: StartCustodians
) -> None:
    """Data key and pin are right: but the owner sealed another kind of records."""
    pinned = read_plan(deployment.plan).find_party("bob").data
    assert pinned
    flat = DigitStream(seed=7, image_shape=(192,))
    sealed = deployment.seal("bob", flat)
    deployment.edit(deployment.plan, pinned, sealed.digest)
    deployment.sign()
    start_custodians(deployment)
    assert_worker_refused(deployment, "bob", code=4, words=("not the task's", "192"))


@pytest.mark.long
def test_a_port_in_use_is_named(deployment: Deployment) -> None:
    site = deployment.site("aggregator").read_text()
    port = int(site.partition('training = "127.0.0.1:')[2].partition('"')[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert_refused(
            deployment, code=6, words=(f"cannot listen at 127.0.0.1:{port}", "in use")
        )


def test_a_custodian_that_cannot_start_ends_the_run(deployment: Deployment) -> None:
    host, _, port = custodian_address(deployment, "bob").partition(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        assert_refused(
            deployment,
            code=6,
            words=(f"custodian of bob: cannot listen at 127.0.0.1:{port}", "in use"),
        )
    assert not deployment.run_directory.exists(), "no node was started"


@pytest.mark.long
def test_a_worker_that_never_comes_is_named(
    deployment: Deployment, start: Start, start_custodians: StartCustodians
) -> None:
    start_custodians(deployment, "aggregator", "alice")
    for site in deployment.directory.glob("parties/*/site.toml"):
        deployment.edit(site, "patience_seconds = 120.0", "patience_seconds = 2.0")
    server = start("server", "--plan", str(deployment.plan), "--json")
    server.wait_for("listening")
    alice = start("worker", "--party", "alice", "--plan", str(deployment.plan))
    code, errors = server.finish()
    assert code == 5
    assert "expected: bob" in errors.replace("expected:  ", "expected: ").replace(
        "alice, bob", "bob"
    )
    assert "patience_seconds" in errors
    assert alice.finish()[0] == 5


@pytest.mark.parametrize(
    "moment",
    [
        "custodian-listening",
        "round",
        pytest.param("finished", marks=pytest.mark.long),
        pytest.param("listening", marks=pytest.mark.long),
        pytest.param("node-measured", marks=pytest.mark.long),
        pytest.param("server-attested", marks=pytest.mark.long),
    ],
)
def test_ctrl_c_stops_every_node_and_leaves_no_half_model(
    deployment: Deployment, start: Start, moment: str
) -> None:
    run = start("run", str(deployment.plan), "--json")
    run.wait_for(moment)
    nodes = children_of(run.process.pid)
    run.interrupt()
    code, errors = run.finish()
    assert "Traceback" not in errors
    wait_until_gone(nodes)
    if moment == "finished" and code == 0:
        assert deployment.sealed_model.exists(), "the run was quicker than the signal"
    else:
        assert code == 130
        assert errors.strip().endswith("interrupted")
    assert deployment.leftovers() == []


@pytest.mark.long
def test_nodes_stop_when_their_launcher_is_killed(
    deployment: Deployment, start: Start
) -> None:
    run = start("run", str(deployment.plan), "--json")
    run.wait_for("round")
    nodes = children_of(run.process.pid)
    assert len(nodes) == 6, "three custodians and three nodes"
    run.process.send_signal(signal.SIGKILL)
    wait_until_gone(nodes)
    assert deployment.leftovers() == []
    assert not deployment.sealed_model.exists()


def test_an_interrupted_init_leaves_nothing(tmp_path: Path, start: Start) -> None:
    target = tmp_path / "deployment"
    init = start("init", str(target))
    assert init.process.stderr is not None
    for line in init.process.stderr:
        if "measuring" in line:
            break
    init.interrupt()
    code, errors = init.finish()
    assert code == 130
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_init_does_not_touch_a_directory_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    done = cloister("init", str(tmp_path))
    assert done.returncode == 2
    assert "is in use" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_command_and_option_are_usage_errors() -> None:
    for arguments in (["frobnicate"], ["run"], ["demo", "--fast"]):
        done = cloister(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_errors_are_machine_readable_on_request(tmp_path: Path) -> None:
    done = cloister("measure", str(tmp_path / "none.toml"), "--json")
    assert done.returncode == 2
    assert '"code":"file-unreadable"' in done.stdout


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; import cloister.cli.main;"
        "heavy = {'grpc', 'numpy', 'torch', 'cryptography', 'rich'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)  # noqa: S603
    assert done.returncode == 0


def custodian_address(deployment: Deployment, party: str) -> str:
    file = (deployment.custodian(party) / "custodian.toml").read_text()
    return file.partition('address = "')[2].partition('"')[0]


def children_of(pid: int) -> list[int]:
    """Returns file descriptors that become readable when each child has ended."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [os.pidfd_open(int(child)) for child in listed]


def wait_until_gone(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        ready, _, _ = select.select([descriptor], [], [], LIMIT_SECONDS)
        os.close(descriptor)
        assert ready, "a node outlived its launcher"
