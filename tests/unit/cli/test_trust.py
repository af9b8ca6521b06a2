from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.federation_in_memory import Federation

from cloister.attestation.trust_root import INTEL_ROOT_SHA256
from cloister.cli.trust import read_root, root_name_in
from cloister.errors import ConfigError
from cloister.plan.collateral_section import CollateralSection


@pytest.fixture
def site(federation: Federation, tmp_path: Path) -> Path:
    (tmp_path / "root.der").write_bytes(federation.root.trust_root.der)
    return tmp_path


def section(trust_root: str | None) -> CollateralSection:
    return CollateralSection(trust_root=trust_root, directory="collateral")


def refusal(site: Path, trust_root: str | None, *, wanted: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_root(section(trust_root), wanted=wanted, at=site.joinpath)
    return caught.value


def test_a_hardware_plan_has_the_built_in_root(site: Path) -> None:
    root = read_root(section(None), wanted="hardware", at=site.joinpath)
    assert root.sha256 == INTEL_ROOT_SHA256
    assert root_name_in(section(None), site.joinpath) == "hardware"


def test_a_hardware_plan_takes_no_other_root(site: Path) -> None:
    assert refusal(site, "root.der", wanted="hardware").code == "root-unused"


def test_a_simulated_plan_needs_its_root(federation: Federation, site: Path) -> None:
    wanted = federation.plan.policy.server.root
    found = read_root(section("root.der"), wanted=wanted, at=site.joinpath)
    assert found == federation.root.trust_root
    assert root_name_in(section("root.der"), site.joinpath) == wanted
    assert refusal(site, None, wanted=wanted).code == "root-missing"
    assert refusal(site, "none.der", wanted=wanted).code == "root-unreadable"


def test_another_deployments_root_is_refused(
    other_federation: Federation, site: Path
) -> None:
    wanted = other_federation.plan.policy.server.root
    assert refusal(site, "root.der", wanted=wanted).code == "root-differs"


def test_the_plan_says_whether_a_root_is_simulated(
    federation: Federation, site: Path
) -> None:
    wanted = f"preproduction:sha256:{federation.root.trust_root.sha256}"
    root = read_root(section("root.der"), wanted=wanted, at=site.joinpath)
    assert root.kind == "preproduction"


def test_what_is_no_certificate_is_no_root(site: Path) -> None:
    (site / "root.der").write_bytes(b"no certificate")
    error = refusal(site, "root.der", wanted="simulated:sha256:" + 64 * "a")
    assert error.code == "root-malformed"
