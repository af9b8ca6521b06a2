"""Writes a custodian's directory: its file, its party's key, a register, a keyring.

The key is made here and never leaves: plans name its public half.
"""

from __future__ import annotations

from pathlib import Path

from cloister.cli.places import CUSTODIAN_FILE
from cloister.custody.keyring import IdentityFile, Lock, Passphrase, create_keyring
from cloister.custody.party_key import new_party_key
from cloister.custody.register import Register
from cloister.errors import StorageError
from cloister.storage.age import new_identity
from cloister.storage.whole_file import write_whole

KEY_FILE = "party-key.pem"
DATABASE_FILE = "custodian.sqlite"
KEYRING_FILE = "keyring.age"
IDENTITY_FILE = "keyring-identity.txt"

INTEL_COLLATERAL = """\
[collateral]                         # about the node's platform; verified each time
pccs = "intel"                       # or the https:// address of a caching service
cache = "collateral"
# For a simulated plan, instead of these two:
# trust_root = "trust-root.der"      # the root that the plan names
# directory = "collateral"           # files
"""


def write_custodian(
    directory: Path,
    *,
    party: str,
    address: str,
    collateral: str,
    passphrase: Passphrase | None = None,
) -> str:
    """Makes a custodian in a directory that is there; returns the party's public key.

    Args:
        directory: Where.
        party: Whose custodian.
        address: ``HOST:PORT`` where it will listen.
        collateral: The section ``[collateral]`` of its file.
        passphrase: What opens its keyring; None for an age identity, made beside it.

    Raises:
        CloisterError: If something is there already, or cannot be written.
        OSError: If the file to edit cannot be written.
    """
    public = new_party_key(directory / KEY_FILE)
    Register.create(directory / DATABASE_FILE, party=party).close()
    lock: Lock = passphrase or _new_identity_file(directory / IDENTITY_FILE)
    create_keyring(directory / KEYRING_FILE, party=party, lock=lock)
    (directory / CUSTODIAN_FILE).write_text(
        _CUSTODIAN.format(
            party=party,
            address=address,
            key=KEY_FILE,
            database=DATABASE_FILE,
            keyring=KEYRING_FILE,
            lock=_BY_IDENTITY if passphrase is None else _BY_PERSON,
            collateral=collateral,
        )
    )
    return public


def _new_identity_file(path: Path) -> IdentityFile:
    identity, recipient = new_identity()
    text = f"# opens {KEYRING_FILE}; public key: {recipient}\n{identity}\n"
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise StorageError(
            f"cannot write the identity {path}",
            code="keyring-unusable",
            got=error.strerror or "an error",
        ) from error
    return IdentityFile(path=path)


_BY_IDENTITY = f"""\
# The identity opens the keyring: keep it on a token or another disk, and say so here.
identity = "{IDENTITY_FILE}\""""
_BY_PERSON = """\
# Asked for at the terminal at each start, unless a file has it, mode 0600:
# passphrase_file = "/run/secrets/keyring\""""

_CUSTODIAN = """\
# What this party's custodian knows. Paths are relative to this file. The directory
# belongs at the party's own site, never on the host of a node.
party = "{party}"
address = "{address}"
key = "{key}"                # speaks for the party: guard it, and keep a copy
database = "{database}"        # what it must not forget: never put back an old one
logs = "logs"
warrant_hours = 24.0
# policy = "policy.toml"             # wants more of the node than the plan does

[keyring]                            # seals the party's keys in the database
file = "{keyring}"                 # without it no key opens: keep a copy
{lock}

{collateral}"""
