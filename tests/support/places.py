"""A node's place on disk, as `cloister init` writes it, for a federation in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from tests.support.federation_in_memory import Federation

from cloister.cli.custodian_files import KEY_FILE, write_custodian
from cloister.cli.places import CustodianPlace, Place, read_custodian_place
from cloister.plan.plan import Plan
from cloister.plan.site import Site

COLLATERAL = '[collateral]\ntrust_root = "../root.der"\ndirectory = "../root"\n'
PORTS = {"enrolment": "127.0.0.1:7001", "training": "127.0.0.1:7002"}


def place_of(  # noqa: PLR0913 - whose, and each thing that a test changes
    plan: Plan,
    directory: Path,
    *,
    party: str = "alice",
    kind: str | None = "simulated-tdx",
    party_key: str | None = None,
    custodian: str = "127.0.0.1:7003",
    shares: Mapping[str, str] | None = None,
    data: str | None = None,
) -> Place:
    """Returns a node's place; no file of it is written."""
    platform = {"kind": kind, "directory": "platform"}
    if kind is not None and not kind.startswith("simulated-"):
        del platform["directory"]
    tree = {
        "party": party,
        "collateral": {"trust_root": "root.der", "directory": "root"},
        "addresses": None if plan.find_party(party).role == "recipient" else PORTS,
        "paths": {"runs": "runs", "data": data},
        "custodian": {"address": custodian, "party_key": party_key},
        "platform": None if kind is None else platform,
        "shares": dict(shares or {}),
    }
    return Place(
        plan=plan,
        plan_path=directory / "plan.toml",
        site=msgspec.convert(tree, Site),
        site_directory=directory,
    )


def custodian_of(
    federation: Federation, directory: Path, party: str, *, collateral: str = COLLATERAL
) -> CustodianPlace:
    """Writes a party's custodian with the federation's root; its key is a fresh one."""
    root = directory / "root.der"
    root.write_bytes(federation.root.trust_root.der)
    own = directory / party
    own.mkdir()
    write_custodian(own, party=party, address="127.0.0.1:7003", collateral=collateral)
    return read_custodian_place(own)


def key_path(directory: Path, party: str) -> Path:
    """Returns where a party's key lies."""
    return directory / party / KEY_FILE
