from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.plan_tree import Path as Place
from tests.support.plan_tree import Tree, Value, leaves, put, take, toml_of

from cloister.errors import ConfigError
from cloister.plan.site import Address, parse_address, read_site

Write = Callable[[Tree], Path]


def site_tree() -> Tree:
    return {
        "party": "alice",
        "patience_seconds": 2.5,
        "platform": {"kind": "simulated-tdx", "directory": "platform"},
        "collateral": {"directory": "../collateral", "trust_root": "../root.der"},
        "addresses": {
            "enrolment": "server.example:7001",
            "training": "[2001:db8::1]:7002",
        },
        "paths": {"runs": "runs", "data": "data"},
        "custodian": {"address": "custodian.example:7003"},
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_site(tree: Tree) -> Path:
        path = tmp_path / "site.toml"
        path.write_bytes(toml_of(tree))
        return path

    return write_site


def test_a_whole_site_reads_as_written(write: Write) -> None:
    site = read_site(write(site_tree()))
    assert site.party == "alice"
    assert site.patience_seconds == 2.5
    assert site.addresses is not None
    assert parse_address(site.addresses.training) == Address("[2001:db8::1]", 7002)


def test_a_nodes_state_lies_in_its_run_unless_the_site_says_otherwise(
    write: Write,
) -> None:
    mirror = read_site(write(site_tree())).mirror
    assert (mirror.directory, mirror.medium) == (None, "file")
    told: Tree = {"directory": "/mnt/pmem", "medium": "persistent-memory"}
    mirror = read_site(write(put(site_tree(), ("mirror",), told))).mirror
    assert (mirror.directory, mirror.medium) == ("/mnt/pmem", "persistent-memory")
    for wrong in ({"medium": "tape"}, {"directory": ""}, {"every": 2}):
        with pytest.raises(ConfigError):
            read_site(write(put(site_tree(), ("mirror",), dict(wrong))))


def test_collateral_from_a_service_needs_its_address_and_a_cache(write: Write) -> None:
    section: Tree = {
        "pccs": "https://pccs.example",
        "cache": "cache",
        "ca_file": "ca.pem",
    }
    site = read_site(write(put(site_tree(), ("collateral",), section)))
    assert site.collateral.pccs == "https://pccs.example"
    wrong: list[Tree] = [
        {},
        {"pccs": "intel"},
        {"pccs": "intel", "cache": "cache", "directory": "files"},
        {"directory": "files", "cache": "cache"},
        {"directory": "files", "ca_file": "ca.pem"},
    ]
    for tree in wrong:
        with pytest.raises(ConfigError) as caught:
            read_site(write(put(site_tree(), ("collateral",), tree)))
        assert caught.value.code == "collateral-source"


def test_patience_data_and_ports_may_be_left_out(write: Write) -> None:
    tree = take(take(site_tree(), ("patience_seconds",)), ("paths", "data"))
    site = read_site(write(take(tree, ("addresses",))))
    assert site.patience_seconds == 120
    assert site.paths.data is None
    assert site.addresses is None


@pytest.mark.parametrize("place", [path[:-1] for path, _ in leaves(site_tree())])
def test_an_unknown_key_is_named_with_its_file(write: Write, place: Place) -> None:
    path = write(put(site_tree(), (*place, "surplus"), 1))
    with pytest.raises(ConfigError, match="'surplus'") as caught:
        read_site(path)
    assert str(path) in caught.value.what


@pytest.mark.parametrize("place", [path for path, _ in leaves(site_tree())])
@pytest.mark.parametrize("wrong", [[1], {"a": 1}, True])
def test_a_value_of_a_wrong_type_is_named(
    write: Write, place: Place, wrong: Value
) -> None:
    with pytest.raises(ConfigError, match=r"\.".join(map(str, place))):
        read_site(write(put(site_tree(), place, wrong)))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("party",), "Alice"),
        (("party",), "alice\n"),
        (("party",), "../bob"),
        (("patience_seconds",), 0),
        (("patience_seconds",), -1),
        (("patience_seconds",), float("nan")),
        (("patience_seconds",), float("inf")),
        (("platform", "kind"), "hardware"),
        (("platform", "directory"), ""),
        (("platform", "directory"), "a\0b"),
        (("paths", "runs"), "r" * 4097),
        (("platform", "kind"), "simulated"),
        (("collateral", "trust_root"), "\0"),
        (("custodian", "party_key"), ""),
    ],
)
def test_a_value_out_of_its_range_is_refused(
    write: Write, place: Place, value: Value
) -> None:
    with pytest.raises(ConfigError, match=r"\.".join(map(str, place))):
        read_site(write(put(site_tree(), place, value)))


def test_both_ports_cannot_have_one_address(write: Write) -> None:
    tree = put(site_tree(), ("addresses", "training"), "server.example:07001")
    with pytest.raises(ConfigError) as caught:
        read_site(write(tree))
    assert caught.value.code == "address-repeats"


SIMULATED_WITHOUT: list[Tree] = [{"kind": "simulated-sgx"}, {"kind": "simulated-tdx"}]
REAL_WITH: list[Tree] = [
    {"kind": "gramine", "directory": "platform"},
    {"kind": "tdx", "directory": "platform"},
]


@pytest.mark.parametrize("platform", [*SIMULATED_WITHOUT, *REAL_WITH])
def test_only_a_simulated_platform_has_a_directory(
    write: Write, platform: Tree
) -> None:
    assert code_of(write(put(site_tree(), ("platform",), platform))) == (
        "platform-directory"
    )


@pytest.mark.parametrize("kind", ["gramine", "tdx"])
def test_a_real_platform_needs_neither_directory_nor_root(
    write: Write, kind: str
) -> None:
    tree = put(site_tree(), ("platform",), {"kind": kind})
    site = read_site(write(take(tree, ("collateral", "trust_root"))))
    assert site.platform is not None
    assert site.platform.directory is None
    assert site.collateral.trust_root is None


def test_a_node_known_by_its_partys_key_has_no_platform(write: Write) -> None:
    tree = put(site_tree(), ("custodian", "party_key"), "party-key.pem")
    site = read_site(write(take(tree, ("platform",))))
    assert site.platform is None
    assert site.custodian.party_key == "party-key.pem"


def test_a_node_proves_itself_in_exactly_one_way(write: Write) -> None:
    both = put(site_tree(), ("custodian", "party_key"), "party-key.pem")
    for tree, got in ((both, "both"), (take(site_tree(), ("platform",)), "neither")):
        with pytest.raises(ConfigError) as caught:
            read_site(write(tree))
        assert (caught.value.code, caught.value.got) == ("site-proof", got)


def test_a_custodians_address_is_checked(write: Write) -> None:
    tree = put(site_tree(), ("custodian", "address"), "custodian.example")
    assert code_of(write(tree)) == "address-invalid"


def test_the_key_of_a_party_has_no_place_under_its_old_name(write: Write) -> None:
    tree = put(site_tree(), ("custodian", "insecure_local_key"), "party-key.pem")
    assert code_of(write(tree)) == "key-unknown"


def code_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_site(path)
    return caught.value.code


def test_a_site_says_where_custodians_with_shares_listen(write: Write) -> None:
    shares: Tree = {"aggregator": "custodian.example:7003", "bob": "[::1]:7004"}
    assert read_site(write(site_tree())).shares == {}
    assert read_site(write(put(site_tree(), ("shares",), shares))).shares == shares


@pytest.mark.parametrize(
    ("shares", "code"),
    [
        ({"bob": "custodian.example"}, "address-invalid"),
        ({"bob": "custodian.example:0"}, "address-invalid"),
        ({"bob": 7003}, "value-invalid"),
        ({"Not A Name": "custodian.example:7003"}, "value-invalid"),
    ],
)
def test_an_address_of_a_share_that_is_none_is_refused(
    write: Write, shares: Tree, code: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_site(write(put(site_tree(), ("shares",), shares)))
    assert caught.value.code == code
