"""Amendments: a plan that takes over a run from the plan before it.

A security patch or a TCB recovery changes measurements, and so the plan; it must not
kill a week of training. The successor names its predecessor's hash and the state that
the run goes on from. It is a plan like any other, and everybody signs it again.

What may change, and nothing else:

    policy of every role                the reference values and what they tolerate, so
                                        also packages and the task file's content, which
                                        are measured; not the trust root
    training.rounds                     may grow
    rounds.evaluate_every
    admission.life_seconds, admission.rounds
    party.platforms                     a machine may be repaired or replaced, and some
                                        get another name by that
    predecessor

Who takes part, on whose data, with which keys, what is trained and who receives it
stays: for anything else there is a new run. That the state is the one the run had
reached is not known here: each custodian compares it with its own mark.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import cbor2
import msgspec

from cloister.errors import ConfigError, VerificationError
from cloister.plan.digest import format_digest
from cloister.plan.plan import Plan, Predecessor, parse_plan, plan_hash

_Path = tuple[str | int, ...]

# Everything under these may change; whatever the schema will have more, may not.
# Where a list stands, -1 is any place in it.
_MAY_CHANGE: tuple[_Path, ...] = (
    ("policy", "server"),
    ("policy", "worker"),
    ("policy", "recipient"),
    ("training", "rounds"),
    ("rounds", "evaluate_every"),
    ("admission", "life_seconds"),
    ("admission", "rounds"),
    ("party", -1, "platforms"),
    ("predecessor",),
)
# Under another root, a run on hardware could go on where nothing is confidential.
_ROOTS: tuple[_Path, ...] = (
    ("policy", "server", "root"),
    ("policy", "worker", "root"),
    ("policy", "recipient", "root"),
)
_HEADER = "[predecessor]"
_NEW_RUN = "For this, start a new run: give the plan another [plan] run."


def check_successor(predecessor: Plan, successor: Plan) -> Plan:
    """Returns `successor`, if it may take over the run of `predecessor`.

    Steps: (1) it names this predecessor; (2) nothing changed but what may; (3) the
    rounds only grew; (4) it goes on from a round the predecessor has, and from none
    before the one where the predecessor itself took over. Left to the caller: that the
    state is the run's, and that everybody signed.

    Raises:
        VerificationError: If any step fails.
    """
    # Step 1: of which plan
    named = successor.predecessor
    wanted = format_digest(plan_hash(predecessor))
    if named is None or named.plan != wanted:
        raise VerificationError(
            "the plan is not an amendment of the one before it",
            code="amendment-predecessor",
            expected=f"[predecessor] plan = {wanted}",
            got="no [predecessor]" if named is None else named.plan,
            remedy="Write it with: cloister plan amend PLAN --custodian DIR.",
        )
    # Step 2: what changed
    _check_unchanged(predecessor, successor)
    # Step 3: how long. Cut short, a model would be published before its time.
    before, after = predecessor.training.rounds, successor.training.rounds
    if after < before:
        raise VerificationError(
            "the amendment cuts the training short",
            code="amendment-shorter",
            expected=f"at least {before} rounds",
            got=str(after),
        )
    # Step 4: from where. Going back behind an amendment would undo it.
    _check_onward(predecessor, named)
    return successor


def successor_text(text: bytes, plan: Plan, *, state: bytes, round: int) -> str:  # noqa: A002 - the word of the plan
    """Returns a successor of `plan` in TOML, for people to edit.

    It is `text` with its comments and spelling, but for the table ``[predecessor]``,
    which stands at the end.

    Args:
        text: The file of `plan`.
        plan: The plan that is amended.
        state: SHA-256 of the state that the run goes on from, 32 bytes.
        round: Rounds completed in that state; 0 before the first.

    Raises:
        ConfigError: If `text` is not the plan's, the round is none that it has, or the
            table that is there already stands in a form that cannot be taken out.
    """
    digest = plan_hash(plan)
    if (found := plan_hash(parse_plan(text))) != digest:
        raise ConfigError(
            "this file is not the plan that is amended",
            code="amendment-text",
            expected=f"a plan with the hash {digest.hex()}",
            got=found.hex(),
        )
    named = Predecessor(
        plan=format_digest(digest), state=format_digest(state), round=round
    )
    kept = _without_predecessor(text.decode()).rstrip("\n")
    written = (
        f"{kept}\n\n{_HEADER}\n"
        f'plan = "{named.plan}"\nstate = "{named.state}"\nround = {named.round}\n'
    )
    _check_written(written, msgspec.structs.replace(plan, predecessor=named))
    return written


def _check_unchanged(predecessor: Plan, successor: Plan) -> None:
    changes = [
        path
        for path in _differences(
            msgspec.to_builtins(predecessor), msgspec.to_builtins(successor)
        )
        if path in _ROOTS or not any(_is_under(path, free) for free in _MAY_CHANGE)
    ]
    if changes:
        raise VerificationError(
            f"the amendment changes {', '.join(map(_dotted, changes))}",
            code=f"amendment-{changes[0][0]}",
            expected="the same as in the plan before it",
            remedy=_NEW_RUN,
        )


def _is_under(path: _Path, free: _Path) -> bool:
    return len(path) >= len(free) and all(
        step in (-1, at) for at, step in zip(path, free, strict=False)
    )


def _check_onward(predecessor: Plan, named: Predecessor) -> None:
    earlier = predecessor.predecessor
    first = 0 if earlier is None else earlier.round
    if not first <= named.round <= predecessor.training.rounds:
        raise VerificationError(
            "the amendment goes on from a round that the plan before it never had",
            code="amendment-round",
            expected=f"{first} to {predecessor.training.rounds}",
            got=str(named.round),
        )
    same_round = earlier is not None and earlier.round == named.round
    if earlier is not None and same_round and earlier.state != named.state:
        raise VerificationError(
            f"two amendments go on from different states of round {named.round}",
            code="amendment-state",
            expected=earlier.state,
            got=named.state,
        )


def _differences(before: object, after: object, path: _Path = ()) -> Iterator[_Path]:
    """Yields where two trees of plain values differ, as their hashes see it."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in chain(before, (key for key in after if key not in before)):
            if key in before and key in after:
                yield from _differences(before[key], after[key], (*path, key))
            else:
                yield (*path, key)
    elif (
        isinstance(before, list | tuple)
        and isinstance(after, list | tuple)
        and len(before) == len(after)
    ):
        for at, pair in enumerate(zip(before, after, strict=True)):
            yield from _differences(*pair, (*path, at))
    # Python holds 1, 1.0 and True for equal; the hash of the plan does not.
    elif cbor2.dumps(before, canonical=True) != cbor2.dumps(after, canonical=True):
        yield path


def _dotted(path: _Path) -> str:
    text = "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in path
    )
    return text.removeprefix(".")


def _without_predecessor(text: str) -> str:
    """Takes the table away as `successor_text` writes it; comments stay."""
    kept: list[str] = []
    inside = False
    for line in text.split("\n"):
        bare = line.strip()
        if bare.startswith("["):
            inside = bare.split("#")[0].rstrip() == _HEADER
        if inside and bare and not bare.startswith("#"):
            continue
        kept.append(line)
    return "\n".join(kept)


def _check_written(text: str, wanted: Plan) -> None:
    """Refuses a text that came out otherwise than meant.

    TOML has many spellings, and the table was found by its usual one alone.
    """
    try:
        if plan_hash(parse_plan(text.encode())) == plan_hash(wanted):
            return
        got = "another plan"
    except ConfigError as error:
        got = error.what
    raise ConfigError(
        "cannot write the amendment into this plan",
        code="amendment-text",
        expected=f"the old table, if any, under a line {_HEADER!r}",
        got=got,
        remedy="Take the old [predecessor] out of the file by hand.",
    )
