"""A node's place: what its role needs of its site file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.places import PORTS
from tests.support.plan_tree import Tree, add_recipient, plan_tree, toml_of

from cloister.cli.places import Place, default_site_path, read_place
from cloister.errors import ConfigError
from cloister.plan.plan import Role

ROLES: dict[str, Role] = {
    "aggregator": "server",
    "alice": "worker",
    "rita": "recipient",
}


def place(directory: Path, party: str, *, ports: bool) -> Place:
    """Writes a plan and a site, and reads them as one place."""
    directory.mkdir()
    plan = directory / "plan.toml"
    plan.write_bytes(toml_of(add_recipient(plan_tree(), "rita")))
    site = default_site_path(plan, party)
    site.parent.mkdir(parents=True)
    tree: Tree = {
        "party": party,
        "platform": {"kind": "simulated-tdx", "directory": "platform"},
        "collateral": {"directory": "collateral", "trust_root": "root.der"},
        "paths": {"runs": "runs"},
        "custodian": {"address": "127.0.0.1:7003"},
    }
    if ports:
        tree["addresses"] = {**PORTS}
    site.write_bytes(toml_of(tree))
    return read_place(plan, role=ROLES[party], party=party, site_path=None)


@pytest.mark.parametrize("party", ["aggregator", "alice"])
def test_who_meets_the_server_needs_its_ports(tmp_path: Path, party: str) -> None:
    assert place(tmp_path / "with", party, ports=True).addresses.training
    with pytest.raises(ConfigError) as caught:
        place(tmp_path / "without", party, ports=False)
    assert caught.value.code == "addresses-missing"


def test_a_recipient_never_meets_it(tmp_path: Path) -> None:
    found = place(tmp_path / "without", "rita", ports=False)
    with pytest.raises(RuntimeError):
        assert found.addresses.training
    with pytest.raises(ConfigError) as caught:
        place(tmp_path / "with", "rita", ports=True)
    assert caught.value.code == "addresses-unused"
