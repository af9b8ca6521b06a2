"""Small states in a mirror, as a host finds them on its medium."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloister.errors import StorageError
from cloister.storage.keys import Secret
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import ArraySpec, Kept, MirrorPlace, Subject

PAGE = 4096
KEY = Secret(bytes(range(32)))
SUBJECT = Subject(
    run_id="softmax/a", plan_hash=bytes(32), role="server", party="aggregator"
)
# Two arrays of one size, so that one could be taken for the other, and a small one.
ARRAYS = (
    ArraySpec(name="parameter/dense.weight", shape=(1000,), dtype="<f4"),
    ArraySpec(name="optimizer/momentum", shape=(1000,), dtype="<f4"),
    ArraySpec(name="statistic/mean", shape=(8,), dtype="<f8"),
)


def place_at(path: Path) -> MirrorPlace:
    """Returns a place in a file."""
    return MirrorPlace(path=path, key=KEY, subject=SUBJECT)


def arrays_of(completed: int) -> dict[str, NDArray[Any]]:
    """Returns the arrays after a round; always the same, and of no other round."""
    values = np.random.default_rng(completed)
    return {
        spec.name: values.standard_normal(spec.shape).astype(spec.dtype)
        for spec in ARRAYS
    }


@contextmanager
def opened(place: MirrorPlace) -> Iterator[StateMirror]:
    """Opens what lies there."""
    mirror = StateMirror.open(place, ARRAYS)
    try:
        yield mirror
    finally:
        mirror.close()


def write_states(place: MirrorPlace, *completed: int) -> Kept:
    """Saves states in a new mirror, one after the other; returns the last one."""
    mirror = StateMirror.create(place, ARRAYS)
    try:
        for number in completed:
            mirror.seal(number, arrays_of(number))
            mirror.commit()
        assert mirror.newest is not None
        return mirror.newest
    finally:
        mirror.close()


def read_state(place: MirrorPlace) -> tuple[int, dict[str, NDArray[Any]]]:
    """Returns the newest state that lies there: rounds completed, and its arrays.

    Raises:
        StorageError: If it does not open; nothing of it is left in memory then.
    """
    into = {name: np.ones_like(array) for name, array in arrays_of(0).items()}
    with opened(place) as mirror:
        assert mirror.newest is not None
        try:
            mirror.restore(mirror.newest, into)
        except StorageError:
            assert not any(array.any() for array in into.values())
            raise
        return mirror.newest.round, into


def save_next(place: MirrorPlace, completed: int) -> Kept:
    """Saves one more state in a mirror that is there."""
    with opened(place) as mirror:
        mirror.seal(completed, arrays_of(completed))
        mirror.commit()
        assert mirror.newest is not None
        return mirror.newest
