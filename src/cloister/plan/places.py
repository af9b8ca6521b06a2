"""Where things are: paths on this machine's disks, ports on a network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta
from typing_extensions import override

from cloister.errors import ConfigError

# A path: no NUL, which no file system has; and not without end.
PathText = Annotated[str, Meta(pattern=r"^[^\x00]+\Z", max_length=4096)]
_ADDRESS = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]{1,253}):(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a port is found."""

    host: str
    port: int

    @override
    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse_address(text: str, *, lowest_port: int = 1) -> Address:
    """Returns ``HOST:PORT`` as an address; IPv6 hosts stand in brackets.

    Args:
        text: The address.
        lowest_port: 0 where "any free port" makes sense.

    Raises:
        ConfigError: If `text` is not of that form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not lowest_port <= int(match["port"]) < 65536:
        raise ConfigError(
            "an address is malformed",
            code="address-invalid",
            expected=f"HOST:PORT with a port from {lowest_port} to 65535",
            got=repr(text[:80]),
        )
    return Address(match["host"], int(match["port"]))
