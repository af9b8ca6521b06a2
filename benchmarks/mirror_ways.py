"""Two ways to keep a state: the mirror's, and the ordinary one."""

from __future__ import annotations

import io
import os
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from cloister.storage.keys import new_key
from cloister.storage.mirror.array_layout import spec_of
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import MirrorPlace, Subject

Tensors = dict[str, NDArray[np.float32]]


def some_tensors(tensors: int, elements: int) -> Tensors:
    """Returns tensors of noise."""
    generator = np.random.default_rng(7)
    return {
        f"layer.{n}": generator.standard_normal(elements, np.float32)
        for n in range(tensors)
    }


def change(tensors: Tensors, number: int) -> None:
    """Makes another state of it; a little of every tensor will do."""
    for array in tensors.values():
        array[number % len(array)] += 1


class Mirrored:
    """A state in a mirror.

    Args:
        directory: Where it lies.
        tensors: How many there are.
        elements: Of each.
        threads: Share the work.
        count: How many work at once.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tensors: int,
        elements: int,
        threads: Executor,
        count: int,
    ) -> None:
        self._state = some_tensors(tensors, elements)
        self._into = {name: np.ones_like(a) for name, a in self._state.items()}
        self._saves = 0
        subject = Subject(
            run_id="benchmark/1", plan_hash=bytes(32), role="server", party="alice"
        )
        self._mirror = StateMirror.create(
            MirrorPlace(path=directory / "state", key=new_key(), subject=subject),
            [spec_of(name, array) for name, array in self._state.items()],
            threads=threads,
            count=count,
        )

    @property
    def size_bytes(self) -> int:
        """Size of the state."""
        return sum(array.nbytes for array in self._state.values())

    def save(self) -> None:
        """Saves another state, durably."""
        self._saves += 1
        change(self._state, self._saves)
        self._mirror.seal(self._saves, self._state)
        self._mirror.commit()

    def restore(self) -> None:
        """Fills arrays with the newest state."""
        newest = self._mirror.newest
        if newest is None:
            raise RuntimeError("nothing was saved")
        self._mirror.restore(newest, self._into)

    def close(self) -> None:
        """Checks that what was restored is what was saved."""
        for name, array in self._into.items():
            if not np.array_equal(array, self._state[name]):
                raise RuntimeError(f"{name} was not restored")
        self._mirror.close()


class Ordinary:
    """A state in a file, as anybody would write it.

    Args:
        directory: Where it lies.
        tensors: How many there are.
        elements: Of each.
    """

    def __init__(self, directory: Path, *, tensors: int, elements: int) -> None:
        self._arrays = some_tensors(tensors, elements)
        self._tensors = {n: torch.from_numpy(a) for n, a in self._arrays.items()}
        self._path = directory / "checkpoint"
        self._cipher = AESGCM(new_key().reveal())
        self._saves = 0

    def save(self) -> None:
        """Saves another state, durably."""
        self._saves += 1
        change(self._arrays, self._saves)
        content = io.BytesIO()
        torch.save(self._tensors, content)
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(nonce, content.getbuffer(), None)
        new = self._path.with_suffix(".new")
        with new.open("wb", buffering=0) as file:
            file.write(nonce)
            file.write(sealed)
            os.fsync(file.fileno())
        new.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)

    def restore(self) -> None:
        """Reads the newest state; the tensors are new ones."""
        sealed = memoryview(self._path.read_bytes())
        content = self._cipher.decrypt(sealed[:12], sealed[12:], None)
        torch.load(io.BytesIO(content), weights_only=True)  # noqa: TID251 - the peer's
