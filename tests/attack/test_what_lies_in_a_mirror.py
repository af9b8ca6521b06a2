"""Whoever has a node's medium reads its mirror, keeps every version, and compares them.

He finds how large it is and when it was written. With the key, later, he finds what the
state is, and that is no party's own: a single update was never there.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import numpy as np
import pytest
from examples.softmax.task import Softmax, SoftmaxLearner
from tests.support.canaries import Canaries
from tests.support.federation_in_memory import Federation
from tests.support.kept_states import (
    ARRAYS,
    KEY,
    arrays_of,
    opened,
    place_at,
    write_states,
)
from tests.support.plan_tree import CLASSES, FEATURES
from tests.support.running import Run
from tests.support.whole_run import Scene, make_scene, task, whole_run
from typing_extensions import override

from cloister.federation import state
from cloister.federation.course import course_of
from cloister.federation.layout import ModelBuffer
from cloister.federation.model_state import ModelState
from cloister.federation.task import LearnerSettings, StepReport
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.records import DataSource

# Of four bytes that nothing else there has, in whatever order.
ROUND, COUNTER = 0x5A17C3D2, 0x6B29E4F1
WINDOW = 16


def number_forms(number: int) -> set[bytes]:
    """Returns how a number may be written in the clear."""
    packed = {struct.pack(f"{order}{size}", number) for order in "<>" for size in "IQ"}
    return packed | {str(number).encode(), f"{number:x}".encode()}


def test_nothing_of_a_state_lies_there_in_the_clear(tmp_path: Path) -> None:
    """No parameter, round, count or name of an array; nor the key."""
    place = place_at(tmp_path / "own.mirror")
    canaries = Canaries()
    canaries.plant("state key", KEY.reveal())
    arrays = arrays_of(ROUND)
    for name, array in arrays.items():
        canaries.plant(name, array.tobytes()[:WINDOW])
        canaries.plant(name, array.tobytes()[-WINDOW:])
        canaries.plant(name, name.encode())
    mirror = StateMirror.create(place, ARRAYS)
    mirror.seal(ROUND, arrays, {"position-in-data": COUNTER})
    mirror.commit()
    mirror.close()
    content = place.path.read_bytes()
    assert canaries.found_below(tmp_path) == {}
    assert b"position-in-data" not in content
    for number in (ROUND, COUNTER):
        assert [form for form in number_forms(number) if form in content] == []
    # It was all there to be found.
    with opened(place) as mirror:
        assert mirror.newest is not None
        assert (mirror.newest.round, mirror.newest.counters) == (
            ROUND,
            {"position-in-data": COUNTER},
        )


def test_a_file_put_back_again_and_again_never_meets_a_nonce_twice(
    tmp_path: Path,
) -> None:
    """Two plaintexts under one key and nonce would show what they differ in.

    The host turns the file back before each start of the server, so that every start
    writes to the same slot what it believes to be its first save.
    """
    place = place_at(tmp_path / "own.mirror")
    write_states(place, 1)
    original = place.path.read_bytes()
    written = []
    for completed in (2, 3, 2):
        place.path.write_bytes(original)
        with opened(place) as mirror:
            mirror.seal(completed, arrays_of(completed))
            mirror.commit()
        written.append(np.frombuffer(place.path.read_bytes(), np.uint8))
    two, three, again = written
    for name, array in arrays_of(2).items():
        other = arrays_of(3)[name].view(np.uint8) ^ array.view(np.uint8)
        assert other[:WINDOW].tobytes() not in (two ^ three).tobytes()
        assert other[-WINDOW:].tobytes() not in (two ^ three).tobytes()
    # Nor does the same state look the same: what did not change cannot be told.
    changed = (two != np.frombuffer(original, np.uint8)).nonzero()[0]
    same = (two == again)[changed]
    assert changed.size > sum(spec.size_bytes for spec in ARRAYS) * 0.9
    assert same.mean() < 0.05


def pieces_of(content: bytes) -> set[bytes]:
    """Returns all of it in pieces that are long enough to be told from noise."""
    return {content[at : at + WINDOW] for at in range(0, len(content) - WINDOW, WINDOW)}


def found(pieces: set[bytes], content: bytes) -> set[bytes]:
    """Returns which pieces are in there."""
    return {piece for piece in pieces if piece in content}


class Watched(Softmax):
    """The plan's task at one worker, whose host keeps every version of a mirror.

    Args:
        path: The server's mirror.

    Attributes:
        updates: Pieces of each update that the worker computed, from end to end.
        models: Of each model that came to it, the first values.
        versions: The mirror as it was while the worker had an update in hand.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(FEATURES, CLASSES)
        self.updates, self.models = set[bytes](), set[bytes]()
        self.versions: list[bytes] = []
        self._path = path

    @override
    def learner(self, source: DataSource, settings: LearnerSettings) -> SoftmaxLearner:
        watched = self

        class Learner(SoftmaxLearner):
            @override
            def load(self, model: ModelBuffer) -> None:
                # Elsewhere the first model has zeros.
                watched.models.add(model.parameters.tobytes()[:WINDOW])
                super().load(model)

            @override
            def step(self, round_number: int, out: ModelBuffer) -> StepReport:
                report = super().step(round_number, out)
                for array in (out.parameters, out.statistics):
                    watched.updates |= pieces_of(array.tobytes())
                watched.keep_version()
                return report

        return Learner(self, source, settings)

    def keep_version(self) -> None:
        self.versions.append(self._path.read_bytes())


def opened_with_the_key(scene: Scene, version: bytes, path: Path) -> bytes:
    """Returns all arrays of a state, as whoever has its key reads them."""
    path.write_bytes(version)
    plan = scene.custodians.plan
    model = ModelState(task().initial_model(seed=3), course_of(plan).optimizer)
    place = dataclasses.replace(scene.place("aggregator"), path=path)
    mirror = StateMirror.open(place, model.specs())
    try:
        assert mirror.newest is not None
        mirror.restore(mirror.newest, model.arrays())
    finally:
        mirror.close()
    return b"".join(array.tobytes() for array in model.arrays().values())


@pytest.mark.parametrize("stated", [True, False])
def test_no_update_is_in_any_version_of_the_mirror_with_the_key_or_without(
    run: Run,
    federation: Federation,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    stated: bool,  # noqa: FBT001 - saved before a model goes out, or beside the round
) -> None:
    monkeypatch.setattr(state, "MARK_SECONDS", 0.0 if stated else 1e9)
    scene = make_scene(tmp_path / "run", federation)
    alice = Watched(scene.place("aggregator").path)
    run(whole_run(scene, tasks={"alice": alice}))
    alice.keep_version()
    rounds = federation.plan.training.rounds
    assert len(alice.models) == len(alice.versions) == rounds + 1
    content = [
        opened_with_the_key(scene, it, tmp_path / "copy.mirror")
        for it in alice.versions
    ]
    for it in alice.versions:
        assert found(alice.updates | alice.models, it) == set()
    # The model is there for who has the key; one party's part of it is not.
    for it in content:
        assert len(found(alice.models, it)) == 1
        assert found(alice.updates, it) == set()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or found(alice.updates, path.read_bytes()) == set()
