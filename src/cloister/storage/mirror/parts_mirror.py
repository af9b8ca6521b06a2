"""Arrays of which parts change on their own: whole transactions, sealed block by block.

Form: ``docs/spec/mirror.md``. Only blocks that were touched, and the manifest, are
written. What this module does not do: keep large states; that is `state_mirror`'s.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from cloister.storage.mirror.array_layout import ArrayLayout
from cloister.storage.mirror.block_cipher import SALT_BYTES
from cloister.storage.mirror.manifest import Bound
from cloister.storage.mirror.medium import open_region
from cloister.storage.mirror.mirror_header import Title
from cloister.storage.mirror.parts_transaction import PartsTransaction
from cloister.storage.mirror.refusals import damaged, dispensable
from cloister.storage.mirror.region import Region
from cloister.storage.mirror.sealed_parts import SealedParts, parts_bytes
from cloister.storage.mirror.subject import ArraySpec, MirrorPlace, Survives
from cloister.storage.mirror.twin import TwinRegion

# Small: a change of a few bytes seals and writes a whole block. And not smaller: each
# has 24 bytes in the manifest, which is written with every transaction.
BLOCK_BYTES: Final = 16 * 1024


class PartsMirror:
    """Named arrays, sealed; the last transaction that was over always opens.

    One thread calls it at a time. The arrays are held in memory, too. Made by `create`
    or `open`; on a region of somebody else's, by `begin` or `find`.
    """

    def __init__(self, place: MirrorPlace, region: Region, parts: SealedParts) -> None:
        self._place = place
        self._region = region
        self._parts = parts
        self._layout = parts.bound.layout
        # One piece of memory for each array; `read` and transactions see the same.
        self._arrays = {
            spec.name: np.zeros(spec.shape, spec.dtype) for spec in self._layout.arrays
        }
        self._values = self._layout.bytes_of(self._arrays)
        self._open = False

    @classmethod
    def create(
        cls,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> Self:
        """Returns a new mirror; all values are zero, and that is durable.

        Args:
            place: Where, whose and under which key; its directory must exist.
            arrays: The arrays; names are unique, the order is kept.
            block_bytes: What is sealed in one piece.

        Raises:
            ConfigError: If the arrays cannot be mirrored (``mirror-arrays``).
            StorageError: As `StateMirror.create`.
            PlatformError: If the medium cannot be used here.
        """
        bound = _bound(place, arrays, block_bytes)
        size = TwinRegion.region_bytes(capacity=parts_bytes(bound))
        region = open_region(place.path, size=size, new=True, medium=place.medium)
        with ExitStack() as undo:
            undo.callback(region.close)
            mirror = cls.begin(region, place, arrays, block_bytes=block_bytes)
            undo.pop_all()
        return mirror

    @classmethod
    def open(
        cls,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        block_bytes: int = BLOCK_BYTES,
    ) -> Self:
        """Returns the mirror that lies there; every value was verified.

        Args:
            place: As `create`.
            arrays: As `create`; the very same.
            block_bytes: As `create`; the very same.

        Raises:
            ConfigError: If the arrays cannot be mirrored (``mirror-arrays``).
            StorageError: As `StateMirror.open`; the remedy is to move it away.
            PlatformError: If the medium cannot be used here.
        """
        bound = _bound(place, arrays, block_bytes)
        size = TwinRegion.region_bytes(capacity=parts_bytes(bound))
        with dispensable(place.path), ExitStack() as undo:
            region = open_region(place.path, size=size, new=False, medium=place.medium)
            undo.callback(region.close)
            mirror = cls.find(region, place, arrays, block_bytes=block_bytes)
            undo.pop_all()
        return mirror

    @classmethod
    def begin(
        cls,
        region: Region,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        block_bytes: int,
    ) -> Self:
        """Returns a mirror of zeros on a new region, which it closes.

        Raises:
            StorageError: If the medium fails.
        """
        bound = _bound(place, arrays, block_bytes)
        header = Title(bound=bound, slots=1).write(place.key)
        twin = TwinRegion.format(region, capacity=parts_bytes(bound), header=header)
        mirror = cls(place, region, _parts(place, twin, bound))
        with mirror.transaction():
            pass  # the zeros
        region.publish()
        return mirror

    @classmethod
    def find(
        cls,
        region: Region,
        place: MirrorPlace,
        arrays: Sequence[ArraySpec],
        *,
        block_bytes: int,
    ) -> Self:
        """Returns the mirror that lies on a region, which it closes.

        1. A transaction that was cut short is undone, or taken to its end.
        2. The header is this node's, under its key (`Title.check`).
        3. The size is what the header means.
        4. The manifest opens, and every block that it names.

        Raises:
            StorageError: As `open`.
        """
        bound = _bound(place, arrays, block_bytes)
        # Step 1
        twin = TwinRegion.open(region)
        # Step 2
        Title(bound=bound, slots=1).check(twin.header, place.key, path=place.path)
        # Step 3
        if twin.capacity != parts_bytes(bound):
            raise damaged(place.path, "the sizes in its header")
        # Step 4
        mirror = cls(place, region, _parts(place, twin, bound))
        mirror._parts.restore(mirror._values)
        return mirror

    @property
    def place(self) -> MirrorPlace:
        """Where it lies, whose it is, under which key."""
        return self._place

    @property
    def survives(self) -> Survives:
        """What a transaction outlives."""
        return self._region.survives

    @property
    def size_bytes(self) -> int:
        """Size of the whole mirror on its medium."""
        return self._region.size

    def read(self, name: str) -> NDArray[Any]:
        """Returns an array: a view that cannot be written and follows changes.

        Raises:
            RuntimeError: If there is no such array.
        """
        self._layout.number_of(name)
        view = self._arrays[name].view()
        view.flags.writeable = False
        return view

    @contextlib.contextmanager
    def transaction(self) -> Iterator[PartsTransaction]:
        """Gives a transaction: durable when the block has ended.

        If the block raises, nothing has happened. There is one at a time.

        Raises:
            StorageError: If it cannot be written (``mirror-unwritable``); the arrays in
                memory are the former ones, and on the medium it is the former state or
                this one.
            RuntimeError: If one is open.
        """
        if self._open:
            raise RuntimeError("a transaction is open")
        self._open = True
        transaction = PartsTransaction(self._layout, self._values)
        try:
            yield transaction
            transaction.end()
            self._parts.write(self._values, sorted(transaction.former))
        except BaseException:
            # Also on Ctrl-C: memory and medium must say the same. Raised again.
            transaction.undo()
            raise
        finally:
            transaction.end()
            self._open = False

    def close(self) -> None:
        """Gives the file back."""
        self._region.close()


def _bound(place: MirrorPlace, arrays: Sequence[ArraySpec], block_bytes: int) -> Bound:
    layout = ArrayLayout(arrays, block_bytes=block_bytes)
    return Bound(kind="parts", subject=place.subject, layout=layout)


def _parts(place: MirrorPlace, twin: TwinRegion, bound: Bound) -> SealedParts:
    return SealedParts(
        twin,
        path=place.path,
        key=place.key,
        bound=bound,
        salt=secrets.token_bytes(SALT_BYTES),
    )
