"""What a mirror holds and whose it is: plain values, bound into every sealed byte."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from cloister.storage.keys import Secret

# A file, through the kernel's page cache; or mapped persistent memory (libpmem).
Medium = Literal["file", "persistent-memory"]
# What a state on a medium outlives: a cut of power, or the death of its process alone.
Survives = Literal["power-cut", "process-death"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose state it is.

    Attributes:
        run_id: The run.
        plan_hash: SHA-256 of the plan, 32 bytes.
        role: The node's role.
        party: The node's party.
    """

    run_id: str
    plan_hash: bytes
    role: str
    party: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One named array of a state.

    Attributes:
        name: Its name, unique in the state.
        shape: Its shape.
        dtype: NumPy's name of its type, with the order of bytes: ``<f4``, ``|u1``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Size of its values."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A state that lies in a mirror.

    Attributes:
        round: Rounds completed in it.
        counters: What else it counts, by name.
        digest: SHA-256 of its manifest, 32 bytes; everybody knows the state by it.
        slot: Where it lies.
    """

    round: int
    counters: Mapping[str, int]
    digest: bytes
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPlace:
    """Where a node keeps its state, and under which key.

    Attributes:
        path: The file.
        key: The node's state key, 32 bytes.
        subject: Whose state it is.
        medium: What it lies on.
    """

    path: Path
    key: Secret = field(repr=False)
    subject: Subject
    medium: Medium = "file"
