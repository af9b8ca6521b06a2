"""What a node may prove itself with; measuring a real one is for integration tests."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.places import place_of
from tests.support.plan_tree import by_identity
from tests.support.recorded_log import RecordedLog

from cloister.cli.places import Place
from cloister.cli.platforms import open_prover, warn_if_refusable
from cloister.cli.sources import Sources
from cloister.custody.party_key import new_party_key
from cloister.errors import ConfigError, PlatformError
from cloister.plan.keys import format_party_key
from cloister.plan.plan import Plan
from cloister.ratls.proofs import IdentityProver

SOURCES = Sources(task=b"")


def refusal(place: Place) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        open_prover(place, SOURCES, log=RecordedLog().logger())
    return caught.value


def on_hardware(plan: Plan, root: str) -> Plan:
    """Returns the plan for real machines, where all data is sealed."""
    policy = msgspec.structs.replace(plan.policy.server, root=root, platforms="any")
    policies = msgspec.structs.replace(plan.policy, server=policy, worker=policy)
    parties = tuple(
        msgspec.structs.replace(it, data_key=f"sha256:{number:064x}") if it.data else it
        for number, it in enumerate(plan.party)
    )
    return msgspec.structs.replace(plan, policy=policies, party=parties)


def with_key(plan: Plan, party: str, key: str) -> Plan:
    parties = tuple(
        msgspec.structs.replace(it, key=key) if it.name == party else it
        for it in plan.party
    )
    return msgspec.structs.replace(plan, party=parties)


@pytest.fixture(scope="module")
def one_way(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(
        tmp_path_factory.mktemp("one-way"), change=lambda it: by_identity(it, "alice")
    )


def test_a_site_without_platform_is_refused_where_evidence_is_wanted(
    federation: Federation, tmp_path: Path
) -> None:
    place = place_of(federation.plan, tmp_path, kind=None, party_key="key.pem")
    assert refusal(place).code == "proof-differs"


def test_a_platform_is_refused_where_the_plan_wants_the_partys_key(
    one_way: Federation, tmp_path: Path
) -> None:
    assert refusal(place_of(one_way.plan, tmp_path)).code == "proof-differs"


def test_a_simulation_is_refused_under_a_plan_for_hardware(
    federation: Federation, tmp_path: Path
) -> None:
    plan = on_hardware(federation.plan, "hardware")
    error = refusal(place_of(plan, tmp_path))
    assert error.code == "platform-differs"
    assert error.expected == "a platform under hardware"


@pytest.mark.parametrize("kind", ["gramine", "tdx"])
def test_hardware_is_refused_under_a_simulated_plan(
    federation: Federation, tmp_path: Path, kind: str
) -> None:
    assert refusal(place_of(federation.plan, tmp_path, kind=kind)).code == (
        "platform-differs"
    )


def test_hardware_that_is_not_there_is_no_simulation(
    federation: Federation, tmp_path: Path
) -> None:
    root = "preproduction:sha256:" + 64 * "a"
    plan = on_hardware(federation.plan, root)
    place = place_of(plan, tmp_path, kind="gramine")
    with pytest.raises(PlatformError):
        open_prover(place, SOURCES, log=RecordedLog().logger())


def test_a_party_proves_itself_by_its_key(one_way: Federation, tmp_path: Path) -> None:
    public = new_party_key(tmp_path / "key.pem")
    plan = with_key(one_way.plan, "alice", public)
    log = RecordedLog()
    place = place_of(plan, tmp_path, kind=None, party_key="key.pem")
    prover = open_prover(place, SOURCES, log=log.logger())
    assert isinstance(prover, IdentityProver)
    assert format_party_key(prover.key) == public
    assert [it["admit"] for it in log.named("node-unmeasured")] == ["identity"]


def test_another_partys_key_is_refused(one_way: Federation, tmp_path: Path) -> None:
    new_party_key(tmp_path / "key.pem")
    place = place_of(one_way.plan, tmp_path, kind=None, party_key="key.pem")
    error = refusal(place)
    assert error.code == "party-key-differs"
    assert error.expected == one_way.plan.find_party("alice").key


def test_a_node_says_early_that_its_evidence_is_not_wanted(
    federation: Federation,
) -> None:
    node, log = federation.node("alice"), RecordedLog()
    plan = federation.plan
    for role in ("worker", "server"):
        warn_if_refusable(
            node.platform, node.appraiser, plan.policy_for(role), log.logger()
        )
    (warning,) = log.named("own-evidence-unwanted")
    assert warning["code"] == "appraisal-measurement", "not wanted of a server"
