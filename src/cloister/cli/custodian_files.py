"""Writes a custodian's directory: its file to edit, its party's key, an empty register.

The key is made here and never leaves: plans name its public half.
"""

from __future__ import annotations

from pathlib import Path

from cloister.cli.places import CUSTODIAN_FILE
from cloister.custody.party_key import new_party_key
from cloister.custody.register import Register

KEY_FILE = "party-key.pem"
DATABASE_FILE = "custodian.sqlite"

INTEL_COLLATERAL = """\
[collateral]                         # about the node's platform; verified each time
pccs = "intel"                       # or the https:// address of a caching service
cache = "collateral"
# For a simulated plan, instead of these two:
# trust_root = "trust-root.der"      # the root that the plan names
# directory = "collateral"           # files
"""


def write_custodian(
    directory: Path, *, party: str, address: str, collateral: str
) -> str:
    """Makes a custodian in a directory that is there; returns the party's public key.

    Args:
        directory: Where.
        party: Whose custodian.
        address: ``HOST:PORT`` where it will listen.
        collateral: The section ``[collateral]`` of its file.

    Raises:
        CloisterError: If something is there already, or cannot be written.
        OSError: If the file to edit cannot be written.
    """
    public = new_party_key(directory / KEY_FILE)
    Register.create(directory / DATABASE_FILE, party=party).close()
    (directory / CUSTODIAN_FILE).write_text(
        _CUSTODIAN.format(
            party=party,
            address=address,
            key=KEY_FILE,
            database=DATABASE_FILE,
            collateral=collateral,
        )
    )
    return public


_CUSTODIAN = """\
# What this party's custodian knows. Paths are relative to this file. The directory
# belongs at the party's own site, never on the host of a node.
party = "{party}"
address = "{address}"
key = "{key}"                # speaks for the party: guard it, and keep a copy
database = "{database}"        # consents, epochs and marks: never put back an old one
logs = "logs"
warrant_hours = 24.0
# policy = "policy.toml"             # wants more of the node than the plan does

{collateral}"""
