from __future__ import annotations

import pytest
from tests.support.federation_in_memory import Federation, make_federation
from tests.support.plan_tree import ROOT, plan_tree, put, toml_of, with_data_keys
from tests.support.refusals import code_of

from cloister.attestation.collateral import Collateral
from cloister.attestation.trust_root import intel_trust_root
from cloister.plan.plan import Plan, parse_plan
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.audit_collateral import KeptCollateral, root_of
from cloister.ratls.node import Node
from cloister.ratls.testimony import collateral_sha256


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def collateral(made: Federation) -> Collateral:
    node: Node = made.node("bob")
    appraiser: Appraiser = node.appraiser
    return appraiser.fetch_collateral(
        node.platform.quote(bytes(64)), expected_report_data=bytes(64)
    )


def with_root(root: str) -> Plan:
    """Returns a plan that pins another root."""
    tree = plan_tree(root=root)
    for role in ("server", "worker"):
        put(tree, ("policy", role, "platforms"), "any")
    # On hardware nobody's records may lie in the clear.
    return parse_plan(toml_of(with_data_keys(tree, "alice", "bob")))


def test_collateral_is_found_by_its_hash(collateral: Collateral) -> None:
    kept, text = KeptCollateral(), collateral.to_json()
    name = collateral_sha256(text)
    assert code_of(kept.get, name) == "audit-collateral"
    kept.keep(text, sha256=name)
    assert kept.get(name).to_json() == text


def test_collateral_under_another_name_is_refused(collateral: Collateral) -> None:
    kept, text = KeptCollateral(), collateral.to_json()
    assert code_of(kept.keep, text, sha256="0" * 64) == "audit-collateral"
    assert code_of(kept.keep, text + " ", sha256=collateral_sha256(text)) == (
        "audit-collateral"
    )
    assert code_of(kept.get, "0" * 64) == "audit-collateral"


def test_what_is_no_collateral_is_not_kept() -> None:
    kept = KeptCollateral()
    assert code_of(kept.keep, "{}", sha256=collateral_sha256("{}"))


def test_the_root_is_the_one_that_the_plan_pins(
    made: Federation, collateral: Collateral
) -> None:
    assert root_of(made.plan, collateral) == made.root.trust_root
    assert code_of(root_of, with_root(ROOT), collateral) == "audit-root"


def test_intels_root_comes_from_nowhere_but_the_installation(
    collateral: Collateral,
) -> None:
    hardware = with_root("hardware")
    assert root_of(hardware, collateral) == intel_trust_root()


def test_a_development_root_is_no_preproduction_root(
    made: Federation, collateral: Collateral
) -> None:
    named = made.plan.policy.server.root.replace("simulated:", "preproduction:")
    other = with_root(named)
    assert root_of(other, collateral).kind == "preproduction"
