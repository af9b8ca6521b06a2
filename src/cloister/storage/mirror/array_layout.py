"""Where a state's arrays lie, and into which blocks they are cut.

Each array begins at a multiple of `ALIGNMENT_BYTES`, in the order given; a block is a
piece of one array. So a block's ciphertext lies at its plaintext's own offset, and its
place says what it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import cbor2
import numpy as np
from numpy.typing import NDArray

from cloister.errors import ConfigError
from cloister.storage.mirror.subject import ArraySpec

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Bytes: TypeAlias = NDArray[np.uint8]

ALIGNMENT_BYTES: Final = 64  # a cache line; more than any element has
MAX_BLOCKS: Final = 2**31  # their numbers are half a nonce's last four bytes
MAX_STATE_BYTES: Final = 2**46  # what offsets of any file system can say
_MAX_DIMENSIONS: Final = 32
_KINDS: Final = frozenset("biufc")  # whose bytes are their values
_NAME: Final = re.compile(r"[\x21-\x7e]{1,255}")  # names stand in messages
_LABEL: Final = "cloister/mirror/1 layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of one array.

    Attributes:
        number: Its number in the state, from 0.
        array: The array's number, from 0.
        start: Its first byte in the array.
        offset: Its first byte in the state.
        size_bytes: Its size, from 1 on.
    """

    number: int
    array: int
    start: int
    offset: int
    size_bytes: int


class ArrayLayout:
    """The arrays of one state and their blocks.

    Args:
        arrays: Every array, in order.
        block_bytes: Size of a block, but for the last one of an array.

    Attributes:
        arrays: As given.
        block_bytes: As given.
        blocks: All blocks, by number.
        size_bytes: From the first byte of the first array to the last of the last.
        digest: SHA-256 over names, shapes, types and the size of blocks: 32 bytes.

    Raises:
        ConfigError: If arrays cannot be kept (``mirror-arrays``).
    """

    def __init__(self, arrays: Sequence[ArraySpec], *, block_bytes: int) -> None:
        self.arrays = tuple(arrays)
        self.block_bytes = block_bytes
        _check_arrays(self.arrays, block_bytes)
        offsets: list[int] = []
        self.size_bytes = 0
        for spec in self.arrays:
            offsets.append(-(-self.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
            self.size_bytes = offsets[-1] + spec.size_bytes
        self.blocks = tuple(_blocks(self.arrays, offsets, block_bytes))
        forms = [[a.name, list(a.shape), a.dtype] for a in self.arrays]
        form = cbor2.dumps([_LABEL, forms, block_bytes], canonical=True)
        self.digest = hashlib.sha256(form).digest()
        self._numbers = {spec.name: n for n, spec in enumerate(self.arrays)}
        self._first: list[int] = []  # block of each array
        count = 0
        for spec in self.arrays:
            self._first.append(count)
            count += -(-spec.size_bytes // block_bytes)

    def bytes_of(self, arrays: Arrays) -> list[Bytes]:
        """Returns each array's bytes, as flat views in the order of the layout.

        Raises:
            RuntimeError: If these are not the layout's arrays, or one is not in C
                order; a bug of the caller.
        """
        if arrays.keys() != self._numbers.keys():
            raise RuntimeError("these are not the arrays of the mirror")
        views: list[Bytes] = []
        for spec in self.arrays:
            array = arrays[spec.name]
            if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
                raise RuntimeError(f"the array {spec.name} is not as the mirror has it")
            if not array.flags.c_contiguous:
                raise RuntimeError(f"the array {spec.name} is not in C order")
            views.append(array.reshape(-1).view(np.uint8))
        return views

    def number_of(self, name: str) -> int:
        """Returns an array's number.

        Raises:
            RuntimeError: If there is none of that name.
        """
        try:
            return self._numbers[name]
        except KeyError:
            raise RuntimeError(f"the mirror has no array {name}") from None

    def blocks_between(self, array: int, start: int, end: int) -> Sequence[Block]:
        """Returns the blocks that have bytes of `start` to before `end` of an array."""
        if start >= end:
            return ()
        first = self._first[array]
        return self.blocks[
            first + start // self.block_bytes : first
            + (end - 1) // self.block_bytes
            + 1
        ]


def spec_of(name: str, array: NDArray[Any]) -> ArraySpec:
    """Returns the specification that an array has."""
    return ArraySpec(name=name, shape=array.shape, dtype=array.dtype.str)


def _blocks(
    arrays: Sequence[ArraySpec], offsets: Sequence[int], block_bytes: int
) -> Iterator[Block]:
    number = 0
    for array, (spec, offset) in enumerate(zip(arrays, offsets, strict=True)):
        for start in range(0, spec.size_bytes, block_bytes):
            yield Block(
                number=number,
                array=array,
                start=start,
                offset=offset + start,
                size_bytes=min(block_bytes, spec.size_bytes - start),
            )
            number += 1


def _check_arrays(arrays: Sequence[ArraySpec], block_bytes: int) -> None:
    """Checks what can be kept; a task of anybody's may have named these arrays."""
    if block_bytes < 1:
        raise RuntimeError("a block has no bytes")
    if not arrays:
        raise _arrays_error("there is none", got="no arrays")
    for number, spec in enumerate(arrays, start=1):
        if not _NAME.fullmatch(spec.name):
            raise _arrays_error(f"name of array {number}", got=ascii(spec.name[:128]))
        _check_type(spec)
        if len(spec.shape) > _MAX_DIMENSIONS or any(size < 0 for size in spec.shape):
            raise _arrays_error(f"shape of {spec.name}", got=str(spec.shape)[:128])
    if len({spec.name for spec in arrays}) != len(arrays):
        raise _arrays_error("names repeat", got=f"{len(arrays)} arrays")
    total = sum(spec.size_bytes for spec in arrays)
    if total == 0:
        raise _arrays_error("all are empty", got="0 bytes")
    blocks = sum(-(-spec.size_bytes // block_bytes) for spec in arrays)
    if total > MAX_STATE_BYTES or blocks > MAX_BLOCKS:
        raise _arrays_error("they are too large", got=f"{total} bytes")


def _check_type(spec: ArraySpec) -> None:
    try:
        dtype = np.dtype(spec.dtype)
    except (TypeError, ValueError) as error:
        raise _arrays_error(
            f"type of {spec.name}", got=ascii(spec.dtype[:32])
        ) from error
    # One spelling: it is part of what every block is bound to.
    if dtype.kind not in _KINDS or dtype.str != spec.dtype:
        raise _arrays_error(f"type of {spec.name}", got=ascii(spec.dtype[:32]))


def _arrays_error(what: str, *, got: str) -> ConfigError:
    return ConfigError(
        f"these arrays cannot be mirrored: {what}",
        code="mirror-arrays",
        expected="arrays of distinct plain names, of numbers or truth values, named as"
        " NumPy does with the order of bytes (<f4, |u1), not all of them empty",
        got=got,
        remedy="Correct state() in the task.",
    )
