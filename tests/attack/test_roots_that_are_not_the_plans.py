"""Simulations where the plan wants hardware, and machines of another deployment.

A root enters a node from its own host's disk. So whoever owns the host may bring any
root; what counts is the one that the plan names.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from tests.support.blind_client import enrol_blindly
from tests.support.custodian_on_disk import (
    ask_for_warrant,
    custodian_on_disk,
    unwarranted,
)
from tests.support.custodians import text_of
from tests.support.custody_meeting import custodian_of
from tests.support.federation_in_memory import (
    START,
    Federation,
    make_federation,
    quoting,
)
from tests.support.hostile_platforms import CountingPlatform
from tests.support.open_server import open_server
from tests.support.places import place_of
from tests.support.plan_tree import Tree, by_identity, put, with_data_keys
from tests.support.recorded_log import read_events
from tests.support.running import Run

from cloister.attestation.collateral_source import CollateralFiles
from cloister.attestation.trust_root import TrustRoot, intel_trust_root
from cloister.cli.journal import open_journal
from cloister.cli.nodes import build_node
from cloister.cli.places import Place
from cloister.errors import CloisterError, ConfigError, RefusedByPeer, VerificationError
from cloister.plan.consent import consents_directory, sign_consent, write_consent
from cloister.plan.plan import Plan
from cloister.ratls.challenge import Refusal
from cloister.ratls.enrolling import enrol
from cloister.ratls.node import Node


def for_hardware(tree: Tree) -> Tree:
    for role in ("server", "worker"):
        put(tree, ("policy", role, "root"), "hardware")
        put(tree, ("policy", role, "platforms"), "any")
    # On hardware nobody's records may lie in the clear.
    return with_data_keys(tree, "alice", "bob")


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Whose plan is for hardware; all that its parties have are simulations."""
    return make_federation(tmp_path_factory.mktemp("hardware"), change=for_hardware)


def judging_by(node: Node, root: TrustRoot, collateral: Path) -> Node:
    appraiser = replace(
        node.appraiser, root=root, collateral=CollateralFiles(collateral)
    )
    return replace(node, appraiser=appraiser)


# A development root under a plan for hardware


@pytest.mark.parametrize(
    ("misled", "code"), [(False, "root-untrusted"), (True, "appraisal-root")]
)
def test_a_simulated_node_gets_no_warrant_under_a_plan_for_hardware(
    run: Run, hardware: Federation, tmp_path: Path, *, misled: bool, code: str
) -> None:
    """Even where somebody gave the custodian the development root to judge by."""
    root = hardware.root.trust_root if misled else intel_trust_root()
    platform = CountingPlatform(hardware.platform("alice"))

    async def story() -> None:
        with custodian_of(hardware, "alice", tmp_path / "registers") as custodian:
            judging = replace(
                custodian, appraiser=replace(custodian.appraiser, root=root)
            )
            async with custodian_on_disk(judging, tmp_path) as office:
                node = unwarranted(quoting(hardware.node("alice"), platform))
                with pytest.raises(RefusedByPeer) as caught:
                    await ask_for_warrant(node, office)
                assert caught.value.code == code
                assert office.warrants() == ()
                assert office.refusals() == [code]
                assert office.events("warrant-signed") == []
                assert platform.quotes == 1

    run(story())


@pytest.mark.parametrize(
    ("misled", "code"), [(False, "root-untrusted"), (True, "appraisal-root")]
)
def test_a_simulated_worker_is_not_admitted_under_a_plan_for_hardware(
    run: Run, hardware: Federation, tmp_path: Path, *, misled: bool, code: str
) -> None:
    root = hardware.root.trust_root if misled else intel_trust_root()
    server = judging_by(
        hardware.node("aggregator"), root, Path(hardware.root.directory)
    )

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            ended = await enrol_blindly(hardware.node("alice"), port.enrolment)
            assert isinstance(ended, Refusal)
            assert ended.code == code
            assert port.admitted() == []
            assert port.refusals() == [code]
            assert port.files() == ["logs/aggregator.jsonl"]

    run(story())


@pytest.mark.parametrize(
    ("misled", "code"), [(False, "root-untrusted"), (True, "appraisal-root")]
)
def test_a_worker_of_a_plan_for_hardware_says_nothing_to_a_simulated_server(
    run: Run, hardware: Federation, tmp_path: Path, *, misled: bool, code: str
) -> None:
    root = hardware.root.trust_root if misled else intel_trust_root()
    own = CountingPlatform(hardware.platform("alice"))
    alice = judging_by(
        quoting(hardware.node("alice"), own), root, Path(hardware.root.directory)
    )

    async def story() -> None:
        async with open_server(hardware.node("aggregator"), tmp_path) as port:
            with pytest.raises(VerificationError) as caught:
                await enrol(alice, port.enrolment)
            assert caught.value.code == code
            assert own.quotes == 0
            assert port.admitted() == []
            assert port.refusals() == [code]

    run(story())


# Another deployment's root


def test_a_host_that_swaps_root_and_collateral_admits_only_its_own_to_nothing(
    run: Run,
    federation: Federation,
    other_federation: Federation,
    tmp_path: Path,
) -> None:
    """The server's host gave it another deployment's root; the plan names its own."""
    foreign = other_federation.root
    server = judging_by(
        federation.node("aggregator"), foreign.trust_root, Path(foreign.directory)
    )
    stranger = quoting(federation.node("alice"), other_federation.platform("alice"))

    async def story() -> None:
        async with open_server(server, tmp_path) as port:
            ended = await enrol_blindly(stranger, port.enrolment)
            assert isinstance(ended, Refusal)
            assert ended.code == "appraisal-root"
            # Nor is an honest node by such a server: it can only refuse more.
            with pytest.raises(RefusedByPeer) as caught:
                await enrol(federation.node("bob"), port.enrolment)
            assert caught.value.code == "root-untrusted"
            assert port.admitted() == []
            assert port.refusals() == ["appraisal-root", "root-untrusted"]

    run(story())


def test_a_node_of_another_deployment_gets_no_warrant_and_its_owner_does(
    run: Run,
    federation: Federation,
    other_federation: Federation,
    tmp_path: Path,
) -> None:
    platform = other_federation.platform("alice")
    stranger = unwarranted(quoting(federation.node("alice"), platform))

    async def story() -> None:
        with custodian_of(federation, "alice", tmp_path / "registers") as custodian:
            async with custodian_on_disk(custodian, tmp_path) as office:
                with pytest.raises(RefusedByPeer):
                    await ask_for_warrant(stranger, office)
                assert office.warrants() == ()
                assert office.refusals() == ["root-untrusted"]
                await ask_for_warrant(unwarranted(federation.node("alice")), office)
                [row] = office.warrants()
                assert row.epoch == 1

    run(story())


# Nodes that do not start


def at_home(federation: Federation, plan: Plan, directory: Path) -> None:
    """Lays down what a host has beside a site: plan, consents, task, collateral."""
    (directory / "plan.toml").write_bytes(text_of(plan))
    (directory / "task.py").write_bytes(b"# the task of the tests\n")
    shutil.copytree(federation.root.directory, directory / "root")
    for party, key in federation.keys.items():
        consent = sign_consent(plan, party=party, key=key, at=START)
        write_consent(consent, consents_directory(directory / "plan.toml", plan))


def no_root(_: Federation, __: Federation, directory: Path) -> None:
    (directory / "root.der").unlink()


def another_root(_: Federation, other: Federation, directory: Path) -> None:
    (directory / "root.der").write_bytes(other.root.trust_root.der)


def intels_root(_: Federation, __: Federation, directory: Path) -> None:
    (directory / "root.der").write_bytes(intel_trust_root().der)


def own_root(_: Federation, __: Federation, ___: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("real", "swap", "code"),
    [
        (False, no_root, "root-unreadable"),
        (False, another_root, "root-differs"),
        (False, intels_root, "root-kind"),
        (True, own_root, "root-unused"),
        (True, intels_root, "root-unused"),
    ],
)
def test_a_node_whose_host_brings_a_root_that_is_not_the_plans_does_not_start(
    run: Run,
    other_federation: Federation,
    tmp_path: Path,
    real: bool,  # noqa: FBT001 - a parameter of the story
    swap: Callable[[Federation, Federation, Path], None],
    code: str,
) -> None:
    federation = make_federation(
        tmp_path / "federation",
        change=lambda tree: by_identity(for_hardware(tree) if real else tree, "alice"),
    )
    site = tmp_path / "site"
    site.mkdir()
    at_home(federation, federation.plan, site)
    (site / "root.der").write_bytes(federation.root.trust_root.der)
    swap(federation, other_federation, site)
    (site / "key.pem").write_bytes(pem_of(federation, "alice"))
    (site / "key.pem").chmod(0o600)
    before = files_below(site)
    place = place_of(federation.plan, site, kind=None, party_key="key.pem")
    error = failure_at_start(run, place, tmp_path / "run")
    assert isinstance(error, ConfigError)
    assert error.code == code
    events = read_events(tmp_path / "run" / "logs" / "alice.jsonl")
    assert [event["event"] for event in events] == ["node-unmeasured"]
    assert files_below(site) == before


def test_a_simulated_platform_under_a_plan_for_hardware_is_not_even_measured(
    run: Run, hardware: Federation, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    at_home(hardware, hardware.plan, site)
    shutil.copytree(hardware.directory / "alice", site / "platform")
    (site / "root.der").write_bytes(hardware.root.trust_root.der)
    error = failure_at_start(run, place_of(hardware.plan, site), tmp_path / "run")
    assert isinstance(error, ConfigError)
    assert error.code == "platform-differs"
    assert read_events(tmp_path / "run" / "logs" / "alice.jsonl") == []


def failure_at_start(run: Run, place: Place, directory: Path) -> CloisterError:
    """Returns what keeps a node from starting."""

    async def start() -> None:
        with open_journal(directory, party="alice", as_json=False) as log:
            await build_node(place, log=log)

    with pytest.raises(CloisterError) as caught:
        run(start())
    return caught.value


def pem_of(federation: Federation, party: str) -> bytes:
    return federation.keys[party].private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())
