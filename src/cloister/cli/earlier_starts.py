"""What earlier starts of a run left on this machine: its end, or what it goes on from.

A run goes on by itself from the state that its nodes kept. It is over when its log ends
with the sealed model. To begin it anew has to be asked for, and loses nothing: what was
there lies under a dated name afterwards.

Nothing of what is read here is believed: it says what to do, and the server's start
says whether it holds.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cloister.cli.log_end import SEALED, read_end
from cloister.cli.places import AUDIT_NAME, Place, default_custodian_path
from cloister.errors import ConfigError, StorageError, VerificationError
from cloister.plan.plan import Plan
from cloister.ratls.mark import Mark


def check_not_over(place: Place) -> Place:
    """Returns `place`, if its run may go on, or begin: one plan is one run.

    It is over when the server has recorded that it sealed the model. A model beside a
    log that does not say so is of a server that died just then; the run goes on, and
    seals it anew.

    Raises:
        ConfigError: If it is over; or there is a model and no log.
        StorageError: If the log cannot be read.
    """
    path = place.audit_path
    logged = path.exists()
    if read_end(path).kind == SEALED if logged else place.model_path.exists():
        raise ConfigError(
            "this run is over: its model is sealed",
            code="run-exists",
            expected="a plan whose run has not come to its end",
            got=str(place.model_path),
            remedy="Give the plan a new [plan] run; one plan is one run."
            # Also what is left where the run was to begin anew, and that was cut short.
            + ("" if logged else " Or begin this one anew, with --fresh."),
        )
    return place


def check_begins(plan: Plan) -> Plan:
    """Returns `plan`, if its run may begin anew.

    Raises:
        ConfigError: If it takes over another plan's run: everybody signed from which
            state, and no two beginnings are the same state.
    """
    before = plan.predecessor
    if before is not None:
        raise ConfigError(
            "a plan that takes over another one's run cannot begin anew",
            code="fresh-amended",
            expected="a plan without [predecessor]",
            got=f"one that goes on after round {before.round}",
            remedy="Give the plan a new [plan] run, and leave [predecessor] out.",
        )
    return plan


def check_unknown(plan: Plan, plan_path: Path, marks: dict[str, Mark | None]) -> Plan:
    """Returns `plan`, if no custodian that was asked knows anything of its run.

    One that does would refuse another beginning, for that is what an attack looks like.

    Args:
        plan: The plan.
        plan_path: Its file.
        marks: What each of those custodians knows of the run, by party.

    Raises:
        VerificationError: If one knows something; the remedy is each command to run.
    """
    known = {party: mark for party, mark in marks.items() if mark is not None}
    if not known:
        return plan
    furthest = max(mark.round for mark in known.values())
    commands = "; ".join(
        f"cloister custodian rewind {_directory(plan_path, it.name)} {plan.run_id}"
        for it in plan.party
        # Whoever was not asked may know it as well: all who train deposit marks.
        if it.name in known or (it.name not in marks and it.role != "recipient")
    )
    raise VerificationError(
        "the run cannot begin anew: custodians know how far it came",
        code="state-rolled-back",
        expected="custodians that know nothing of it",
        got=f"round {furthest}, known to the custodian of {', '.join(sorted(known))}",
        remedy=f"To go on from the newest state, leave --fresh out. To begin anew, each"
        f" party's operator first runs: {commands}.",
    )


def set_aside(place: Place, *, at: datetime) -> Sequence[Path]:
    """Moves what earlier starts of a node left, and returns where it lies now.

    Of any node its state; of the server the log and the model as well, of the worker
    that seals the graph that. The log goes first, then the state, each for good before
    the next: wherever this is broken off, a later start goes on rightly or refuses
    what is left, and this can be done again. A server that finds a state that came
    further than its log refuses it; one that found a log without its state would write
    of another beginning into it.

    Args:
        place: The node's place; the caller holds its lock.
        at: The time, for the name of the directory.

    Raises:
        StorageError: If something cannot be moved.
    """
    found = [*place.every_mirror_path]
    if place.party.role == "server":
        stem, _, suffix = AUDIT_NAME.rpartition(".")
        former = sorted(place.run_directory.glob(f"{stem}.*.{suffix}"))
        found = [place.audit_path, *former, *found, place.model_path]
    elif place.plan.model.graph == place.party.name:
        found.append(place.graph_path)
    name = f"before-{at:%Y%m%d-%H%M%S}"
    return [_moved(path, name) for path in found if os.path.lexists(path)]


def _moved(path: Path, name: str) -> Path:
    directory = path.parent / name
    to = directory / path.name
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        if os.path.lexists(to):
            raise FileExistsError(0, "it is there already")
        path.rename(to)
        for changed in (directory, path.parent):
            _sync(changed)
    except OSError as error:
        raise StorageError(
            f"cannot set {path} aside",
            code="file-unwritable",
            expected=f"a place for it in {directory}",
            got=error.strerror or "an error",
        ) from error
    return to


def _sync(directory: Path) -> None:
    """Has what lies in a directory, by its names, outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _directory(plan_path: Path, party: str) -> str:
    directory = default_custodian_path(plan_path, party).parent
    return str(directory) if directory.exists() else f"DIR-OF-{party.upper()}"
