from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.plan_tree import Path as Place
from tests.support.plan_tree import Tree, Value, leaves, put, take, toml_of

from cloister.errors import ConfigError
from cloister.plan.site import Address, parse_address, read_site

Write = Callable[[Tree], Path]


def site_tree() -> Tree:
    return {
        "party": "alice",
        "patience_seconds": 2.5,
        "platform": {
            "kind": "simulated-tdx",
            "directory": "platform",
            "trust_root": "../root.der",
        },
        "collateral": {"directory": "../collateral"},
        "addresses": {
            "enrolment": "server.example:7001",
            "training": "[2001:db8::1]:7002",
        },
        "paths": {"runs": "runs", "data": "data"},
        "custodian": {"insecure_local_key": "party.pem"},
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
    assert parse_address(site.addresses.training) == Address("[2001:db8::1]", 7002)


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


def test_patience_and_data_may_be_left_out(write: Write) -> None:
    tree = take(take(site_tree(), ("patience_seconds",)), ("paths", "data"))
    site = read_site(write(tree))
    assert site.patience_seconds == 120
    assert site.paths.data is None


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
        (("custodian", "insecure_local_key"), "\0"),
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


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("localhost:65535", "localhost", 65535),
        ("[::1]:80", "[::1]", 80),
        ("a-b.example:00080", "a-b.example", 80),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert str(parse_address(text)) == f"{host}:{port}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "host",
        "host:",
        "host:0",
        "host:65536",
        "host:-1",
        "host:1e3",
        "host:٣",
        "::1:80",
        "[::1]",
        "[::1:80",
        "a b:80",
        "host:80\n",
        "http://host:80",
        "host:80/path",
        "h" * 254 + ":80",
        "user@host:80",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert caught.value.code == "address-invalid"
    assert caught.value.expected == "HOST:PORT with a port from 1 to 65535"


@given(st.text(max_size=300))
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse_address(text)
