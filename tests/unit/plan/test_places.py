from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.plan.places import Address, parse_address


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
