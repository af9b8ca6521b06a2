"""The text of the plan that `cloister init` writes for people to edit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.attestation.platforms.measurement import Measurement
from cloister.cli.recipes import Recipe
from cloister.cli.toml_values import toml_table, toml_value
from cloister.plan.values import Option

INITIAL_FILE = "start.safetensors"  # beside the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyEntry:
    """One party as the plan names it; without platforms its key alone admits it."""

    name: str
    role: str
    key: str
    platforms: tuple[str, ...] | None
    data: str | None = None
    data_key: str | None = None
    state_share: str | None = None
    recipient: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """What the plan says of the model.

    Attributes:
        recipient: Who may open it.
        initial: SHA-256 of the model to start from; None: the task's own.
        graph: The worker that seals the network's structure; None: nobody.
    """

    recipient: str
    initial: str | None = None
    graph: str | None = None


def plan_text(
    recipe: Recipe,
    *,
    run: str,
    parties: tuple[PartyEntry, ...],
    root: str,
    measurements: Mapping[str, Measurement],
    model: ModelEntry,
) -> str:
    """Returns a plan.

    Args:
        recipe: What to train, and how.
        run: The plan's run.
        parties: Everybody.
        root: Name of the trust root.
        measurements: One entry for each role of which somebody is attested.
        model: What it says of the model.

    Raises:
        ConfigError: If an option or a setting of the recipe is no value of a plan; it
            is named (``value-invalid``).
    """
    sections = [
        _PLAN_HEAD.format(
            name=recipe.name,
            run=run,
            task_class=recipe.task_class,
            options=toml_table(recipe.options),
            rounds=recipe.rounds,
            batch_size=recipe.batch_size,
            precision=recipe.precision,
            wire=_wire(recipe),
            mode=_mode(recipe),
            threads=f"{recipe.threads}".ljust(28),
            seed=recipe.seed,
            optimizers=_optimizers(recipe),
            schedule=_schedule(recipe),
            initial=_initial(model.initial),
            colluders=_colluders(parties),
            evaluate_every=recipe.evaluate_every,
        ),
        *(_party(entry) for entry in parties),
        *(policy_text(role, m, root=root) for role, m in measurements.items()),
        _model(model),
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


def _mode(recipe: Recipe) -> str:
    if recipe.local_steps is None:
        return _MODE_SYNC
    return _MODE_FEDAVG.format(local_steps=recipe.local_steps)


def _wire(recipe: Recipe) -> str:
    said = {"float32": "exact", "bfloat16": "rounded: half the bytes, other bits"}
    return f'"{recipe.wire}"'.ljust(30) + f"# {said[recipe.wire]}"


def _optimizers(recipe: Recipe) -> str:
    """Returns what descends on data, and what the server makes of the mean."""
    descent = f"learning_rate = {recipe.learning_rate}"
    if recipe.local_optimizer != "task":
        descent += (
            f", momentum = {recipe.momentum}, weight_decay = {recipe.weight_decay}"
        )
    if recipe.local_steps is None:
        return f'optimizer = {{ name = "sgd", {descent} }}'
    optimizer = toml_value(recipe.local_optimizer, name="local_optimizer")
    named = f"name = {optimizer}, "
    return (
        f"local_optimizer = {{ {named}{descent} }}\n"
        "# The server's: at rate 1 the next model is the mean of the workers' models.\n"
        'optimizer = { name = "sgd", learning_rate = 1.0 }'
    )


def _schedule(recipe: Recipe) -> str:
    settings: dict[str, Option] = {
        "name": recipe.schedule,
        **recipe.schedule_settings,
        "warmup_rounds": recipe.warmup_rounds,
    }
    return toml_table(settings)


def _initial(sha256: str | None) -> str:
    if sha256 is None:
        return ""
    return f'initial = {{ file = "{INITIAL_FILE}", sha256 = "{sha256}" }}\n'


def _colluders(parties: tuple[PartyEntry, ...]) -> str:
    """Returns how many owners may pool what they see, where one's node shows it."""
    if all(entry.platforms is not None for entry in parties):
        return ""
    return "tolerated_colluders = 0              # owners see the sums of every round\n"


def _model(model: ModelEntry) -> str:
    lines = ["[model]", f"recipients = [{json.dumps(model.recipient)}]"]
    if model.graph is not None:
        lines.append(f"graph = {json.dumps(model.graph)}")
    return "\n".join(lines) + "\n"


def _party(entry: PartyEntry) -> str:
    lines = [
        "[[party]]",
        f"name = {json.dumps(entry.name)}",
        f"role = {json.dumps(entry.role)}",
        f"key = {json.dumps(entry.key)}",
    ]
    if entry.platforms is None:
        lines.append('admit = "identity"')
    else:
        # Or whoever has a machine of that root could run a node under its name.
        lines.append(f"platforms = {json.dumps(list(entry.platforms))}")
    if entry.data:
        if entry.platforms is not None:
            lines.append('admit = "attested"')
        lines.append(f"data = {json.dumps(entry.data)}")
    if entry.data_key:
        lines.append(f"data_key = {json.dumps(entry.data_key)}")
    # Of each other's keys, custodians know the names alone.
    if entry.state_share:
        lines.append(f"state_share = {json.dumps(entry.state_share)}")
    if entry.recipient:
        lines.append(f"recipient = {json.dumps(entry.recipient)}")
    return "\n".join(lines) + "\n"


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
threads = {threads} # per worker; with precision it decides the bits
seed = {seed}
{optimizers}
schedule = {schedule}
{initial}
[rounds]
quorum = "all"
{colluders}evaluate_every = {evaluate_every}
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
