"""A valid plan as a tree of values, to be changed in one place and written as TOML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TypeAlias

from cloister.attestation.platforms.measurement import (
    Installation,
    Measurement,
    node_measurement,
)

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value]"
Tree: TypeAlias = dict[str, Value]
Path: TypeAlias = tuple[str | int, ...]

ROOT = "simulated:sha256:" + 64 * "a"
RECIPIENT = "age1cy0su9fwf3gf9mw868g5yut09p6nytfmmnktexz2ya5uqg9vl9sss4euqm"
# Of an attested recipient; nobody has its identity.
THEIR_RECIPIENT = "age1" + 58 * "q"
TASK_SOURCE = b"# the task of the tests\n"
WORKERS = ("alice", "bob")
FEATURES, CLASSES = 12, 3


def measurement_of(role: str, *, task_source: bytes = TASK_SOURCE) -> Measurement:
    """Returns the measurement of a made-up installation; nothing is read."""
    installation = Installation(
        interpreter=bytes(range(32)),
        installed=bytes(range(32, 64)),
        interpreter_files=1,
        installed_files=1,
        total_bytes=2,
    )
    return node_measurement(installation, sources=(task_source,), role=role)


def plan_tree(
    *,
    root: str = ROOT,
    keys: Mapping[str, str] | None = None,
    recipient: str = RECIPIENT,
) -> Tree:
    """Returns a fresh plan of one server and two workers."""
    keys = keys or {
        name: f"ed25519:{number:064x}"
        for number, name in enumerate(("aggregator", *WORKERS), 1)
    }
    parties: list[Value] = [
        {"name": "aggregator", "role": "server", "key": keys["aggregator"]}
    ]
    for number, name in enumerate(WORKERS, 1):
        parties.append(
            {
                "name": name,
                "role": "worker",
                "admit": "attested",
                "key": keys[name],
                "data": f"sha256:{number:064x}",
            }
        )
    return {
        "plan": {"format": 1, "name": "blobs", "run": "a"},
        "task": {
            "file": "task.py",
            "class": "Softmax",
            "options": {"features": FEATURES, "classes": CLASSES},
        },
        "training": {
            "mode": "sync-sgd",
            "rounds": 12,
            "batch_size": 16,
            "precision": "float32",
            "threads": 1,
            "seed": 7,
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.5,
                "momentum": 0.5,
                "weight_decay": 0.001,
            },
            "schedule": {"name": "cosine", "warmup_rounds": 2},
        },
        "rounds": {"quorum": "all", "evaluate_every": 4},
        "party": parties,
        "policy": {"server": policy("server", root), "worker": policy("worker", root)},
        "model": {"recipients": [recipient]},
    }


def add_worker(tree: Tree, name: str) -> Tree:
    """Adds an attested worker with a key and data of its own; returns the same tree."""
    parties = tree["party"]
    assert isinstance(parties, list)
    number = len(parties) + 1
    parties.append(
        {
            "name": name,
            "role": "worker",
            "admit": "attested",
            "key": f"ed25519:{number:064x}",
            "data": f"sha256:{number:064x}",
        }
    )
    return tree


def add_recipient(
    tree: Tree,
    name: str,
    *,
    recipient: str = THEIR_RECIPIENT,
    key: str | None = None,
) -> Tree:
    """Adds an attested recipient and its role's policy; returns the same tree."""
    parties = tree["party"]
    assert isinstance(parties, list)
    number = len(parties) + 1
    parties.append(
        {
            "name": name,
            "role": "recipient",
            "key": key or f"ed25519:{number:064x}",
            "recipient": recipient,
        }
    )
    root = at(tree, ("policy", "server", "root"))
    assert isinstance(root, str)
    return put(tree, ("policy", "recipient"), policy("recipient", root))


def average(tree: Tree, *, local_steps: int = 3) -> Tree:
    """Makes a round local steps and then the mean; returns the same tree."""
    put(tree, ("training", "mode"), "fedavg")
    put(tree, ("training", "local_steps"), local_steps)
    put(tree, ("training", "local_optimizer"), {"learning_rate": 0.25})
    return put(tree, ("training", "optimizer"), {"name": "sgd", "learning_rate": 1.0})


def with_strategy(tree: Tree, *, file: str = "strategy.py") -> Tree:
    """Gives the plan a strategy of its own; returns the same tree."""
    return put(
        tree,
        ("training", "optimizer"),
        {"name": "custom", "learning_rate": 0.5, "file": file, "class": "Own"},
    )


def with_quorum(
    tree: Tree, quorum: int, *, deadline_seconds: int = 60, sample: int | None = None
) -> Tree:
    """Lets rounds end without everybody; returns the same tree."""
    put(tree, ("rounds", "quorum"), quorum)
    put(tree, ("rounds", "deadline_seconds"), deadline_seconds)
    return tree if sample is None else put(tree, ("rounds", "sample"), sample)


def hold_shares(tree: Tree, *names: str) -> Tree:
    """Gives the named parties a share of the state keys; returns the same tree."""
    parties = tree["party"]
    assert isinstance(parties, list)
    for number, party in enumerate(parties, 1):
        assert isinstance(party, dict)
        if party["name"] in names:
            party["state_share"] = f"sha256:{number}{63 * 'b'}"
    return tree


def with_data_keys(tree: Tree, *names: str) -> Tree:
    """Gives the named parties a key of sealed data; returns the same tree."""
    parties = tree["party"]
    assert isinstance(parties, list)
    for number, party in enumerate(parties, 1):
        assert isinstance(party, dict)
        if party["name"] in names:
            party["data_key"] = f"sha256:{number}{63 * 'c'}"
    return tree


def by_identity(tree: Tree, *names: str, colluders: int = 0) -> Tree:
    """Admits the named workers by their keys alone; returns the same tree.

    A policy for workers that nobody is held to any more is taken away.
    """
    parties = tree["party"]
    assert isinstance(parties, list)
    for number, party in enumerate(parties):
        assert isinstance(party, dict)
        if party["name"] in names:
            put(tree, ("party", number, "admit"), "identity")
            party.pop("platforms", None)
    put(tree, ("rounds", "tolerated_colluders"), colluders)
    workers = [p for p in parties if isinstance(p, dict) and p["role"] == "worker"]
    if all(worker["admit"] == "identity" for worker in workers):
        take(tree, ("policy", "worker"))
    return tree


def policy(role: str, root: str) -> Tree:
    measured = measurement_of(role)
    return {
        "root": root,
        **({"platforms": "any"} if root == "hardware" else {}),
        "sgx": [{"mr_enclave": measured.mr_enclave.hex()}],
        "tdx": [
            {
                "mrtd": measured.mrtd.hex(),
                "rtmr0": measured.rtmr0.hex(),
                "rtmr1": measured.rtmr1.hex(),
                "rtmr2": measured.rtmr2.hex(),
            }
        ],
    }


def leaves(value: Value, path: Path = ()) -> list[tuple[Path, Value]]:
    """Returns every value that holds no other, and where it stands."""
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key], (*path, key))]
    if isinstance(value, list):
        return [
            leaf for at, item in enumerate(value) for leaf in leaves(item, (*path, at))
        ]
    return [(path, value)]


def tables(value: Value, path: Path = ()) -> list[Path]:
    """Returns where every table stands, the whole included."""
    if isinstance(value, dict):
        inner = [place for key in value for place in tables(value[key], (*path, key))]
        return [path, *inner]
    if isinstance(value, list):
        return [
            place
            for at, item in enumerate(value)
            for place in tables(item, (*path, at))
        ]
    return []


def at(value: Value, path: Path) -> Value:
    """Returns what stands at `path`."""
    for step in path:
        if isinstance(value, dict):
            value = value[str(step)]
        elif isinstance(value, list):
            value = value[int(step)]
    return value


def put(tree: Tree, path: Path, value: Value) -> Tree:
    """Puts `value` at `path`; returns the same tree."""
    holder = at(tree, path[:-1])
    if isinstance(holder, dict):
        holder[str(path[-1])] = value
    elif isinstance(holder, list):
        holder[int(path[-1])] = value
    return tree


def take(tree: Tree, path: Path) -> Tree:
    """Takes what stands at `path` away; returns the same tree."""
    holder = at(tree, path[:-1])
    if isinstance(holder, dict):
        del holder[str(path[-1])]
    elif isinstance(holder, list):
        del holder[int(path[-1])]
    return tree


def toml_of(tree: Tree) -> bytes:
    """Returns `tree` as TOML, one line a top-level key."""
    return "".join(f"{_key(key)} = {_text(tree[key])}\n" for key in tree).encode()


def _text(value: Value) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_text(value[key])}" for key in value)
        return f"{{ {pairs} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # nan, inf, -inf: the same in TOML, and not JSON
    return json.dumps(value)


def _key(key: str) -> str:
    return json.dumps(key)
