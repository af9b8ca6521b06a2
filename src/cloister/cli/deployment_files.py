"""The text of the files that `cloister init` writes for people to edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.attestation.platforms.measurement import Measurement
from cloister.cli.recipes import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyEntry:
    """One party as the plan names it."""

    name: str
    role: str
    key: str
    platforms: tuple[str, ...]
    data: str | None = None
    state_share: str | None = None
    recipient: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEntry:
    """What one party's node knows.

    Attributes:
        party: The party.
        tee: Kind of its simulated platform.
        ports: The server's enrolment and training port; None for a recipient.
        custodian: Where its custodian listens.
        with_data: Whether it has records.
        shares: Where other shareholders' custodians listen.
    """

    party: str
    tee: str
    ports: tuple[str, str] | None
    custodian: str
    with_data: bool
    shares: Mapping[str, str]


def plan_text(
    recipe: Recipe,
    *,
    run: str,
    parties: tuple[PartyEntry, ...],
    root: str,
    measurements: Mapping[str, Measurement],
    recipient: str,
) -> str:
    """Returns a plan; `measurements` has one entry for each role."""
    sections = [
        _PLAN_HEAD.format(
            name=recipe.name,
            run=run,
            task_class=recipe.task_class,
            options=_inline(recipe.options),
            rounds=recipe.rounds,
            batch_size=recipe.batch_size,
            precision=recipe.precision,
            wire=_wire(recipe),
            mode=_mode(recipe),
            optimizers=_optimizers(recipe),
            warmup_rounds=recipe.warmup_rounds,
            evaluate_every=recipe.evaluate_every,
        ),
        *(_party(entry) for entry in parties),
        *(policy_text(role, m, root=root) for role, m in measurements.items()),
        f"[model]\nrecipients = [{json.dumps(recipient)}]\n",
    ]
    return "\n".join(sections)


def policy_text(role: str, measured: Measurement, *, root: str) -> str:
    """Returns the plan's policy for nodes of one role and one measurement."""
    return _POLICY.format(
        role=role,
        root=root,
        mr_enclave=measured.mr_enclave.hex(),
        mrtd=measured.mrtd.hex(),
        rtmr0=measured.rtmr0.hex(),
        rtmr1=measured.rtmr1.hex(),
        rtmr2=measured.rtmr2.hex(),
    )


def site_text(entry: SiteEntry) -> str:
    """Returns a party's site file."""
    return _SITE.format(
        party=entry.party,
        tee=entry.tee,
        addresses=_addresses(entry.ports),
        custodian=entry.custodian,
        collateral=COLLATERAL,
        data='data = "data"\n' if entry.with_data else "",
        shares=_shares(entry.shares),
    )


def _mode(recipe: Recipe) -> str:
    if recipe.local_steps is None:
        return _MODE_SYNC
    return _MODE_FEDAVG.format(local_steps=recipe.local_steps)


def _wire(recipe: Recipe) -> str:
    said = {"float32": "exact", "bfloat16": "rounded: half the bytes, other bits"}
    return f'"{recipe.wire}"'.ljust(30) + f"# {said[recipe.wire]}"


def _optimizers(recipe: Recipe) -> str:
    """Returns what descends on data, and what the server makes of the mean."""
    descent = (
        f"learning_rate = {recipe.learning_rate}, momentum = 0.9,"
        f" weight_decay = {recipe.weight_decay} }}"
    )
    if recipe.local_steps is None:
        return f'optimizer = {{ name = "sgd", {descent}'
    return (
        f"local_optimizer = {{ {descent}\n"
        "# The server's: at rate 1 the next model is the mean of the workers' models.\n"
        'optimizer = { name = "sgd", learning_rate = 1.0 }'
    )


def _party(entry: PartyEntry) -> str:
    lines = [
        "[[party]]",
        f"name = {json.dumps(entry.name)}",
        f"role = {json.dumps(entry.role)}",
        f"key = {json.dumps(entry.key)}",
    ]
    # Or whoever has a machine of that root could run a node under the party's name.
    lines.append(f"platforms = {json.dumps(list(entry.platforms))}")
    if entry.data:
        lines += ['admit = "attested"', f"data = {json.dumps(entry.data)}"]
    # Of each other's keys, custodians know the names alone.
    if entry.state_share:
        lines.append(f"state_share = {json.dumps(entry.state_share)}")
    if entry.recipient:
        lines.append(f"recipient = {json.dumps(entry.recipient)}")
    return "\n".join(lines) + "\n"


def _addresses(ports: tuple[str, str] | None) -> str:
    if ports is None:
        return ""
    enrolment, training = map(json.dumps, ports)
    return f"{_ADDRESSES}\nenrolment = {enrolment}\ntraining = {training}\n\n"


def _shares(custodians: Mapping[str, str]) -> str:
    if not custodians:
        return ""
    lines = [f"{name} = {json.dumps(at)}" for name, at in custodians.items()]
    return "\n".join(("", _SHARES, *lines, ""))


def _inline(options: Mapping[str, bool | int | float]) -> str:
    pairs = (f"{name} = {json.dumps(value)}" for name, value in options.items())
    return "{ " + ", ".join(pairs) + " }"


_MODE_SYNC = """\
mode = "sync-sgd"                    # each round: gradients up, parameters down"""

_MODE_FEDAVG = """\
mode = "fedavg"                      # each round: local steps, then the mean of all
local_steps = {local_steps}                      # of every worker in a round"""

_PLAN_HEAD = """\
# What everybody signs. Unknown keys are errors; the hash covers every value.
# Nothing here is about a machine: addresses and paths stand in each site.toml.

[plan]
format = 1
name = "{name}"
run = "{run}"                        # one plan is one run: change this for another

[task]
file = "task.py"                     # beside this file; measured by every node
class = "{task_class}"
options = {options}

[training]
{mode}
rounds = {rounds}
batch_size = {batch_size}                      # per worker and step
precision = "{precision}"
wire = {wire}
threads = 1                          # per worker; with precision it decides the bits
seed = 7
{optimizers}
schedule = {{ name = "cosine", warmup_rounds = {warmup_rounds} }}

[rounds]
quorum = "all"
evaluate_every = {evaluate_every}
"""

_POLICY = """\
[policy.{role}]                      # `cloister measure plan.toml` prints these
root = "{root}"
sgx = [{{ mr_enclave = "{mr_enclave}" }}]

[[policy.{role}.tdx]]
mrtd = "{mrtd}"
rtmr0 = "{rtmr0}"
rtmr1 = "{rtmr1}"
rtmr2 = "{rtmr2}"
"""

COLLATERAL = """\
[collateral]                         # about others' platforms; verified each time
trust_root = "../../trust-root.der"  # must be the root that the plan names
directory = "../../collateral"
"""

_ADDRESSES = """\
[addresses]                          # the server listens here, workers call here"""

_SHARES = """\
[shares]                             # custodians of the other parties with a share"""

_SITE = """\
# What this node alone knows; unhashed. Paths are relative to this file.
party = "{party}"
patience_seconds = 120.0             # longest silence; longer than a round computes

[platform]
kind = "simulated-{tee}"             # software that protects nothing: for trying out
directory = "insecure-simulated-platform"

{collateral}
[custodian]                          # this party's own; warrants this node
address = "{custodian}"

{addresses}[paths]
runs = "../../runs"
{data}{shares}"""
