"""One party's update, loss and metrics: a story knows them, and looks for them.

On disk they are searched for in every form that `canaries` knows; in memory for the
bytes themselves, in whatever the garbage collector can reach.
"""

from __future__ import annotations

import gc
import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from tests.support.canaries import Canaries
from tests.support.open_server import OpenServer
from tests.support.reachable import newer_objects, older_objects
from tests.support.training_calls import (
    Contributing,
    countersigned,
    layout_of_run,
    model_in,
)

from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import (
    EvaluationReport,
    ModelHeader,
    UpdateHeader,
    encode_header,
)
from cloister.federation.updates import Receiver, Update
from cloister.federation.wire_format import wire_format
from cloister.ratls.node import Node

_VEIL = 0x5A
_MARK_BYTES = 24
_FRESH = itertools.count()
_HOLD_BYTES = {bytes, np.ndarray}


def values_of(port: OpenServer, *, seed: int, scale: float = 1.0) -> ModelBuffer:
    """Returns an update that nobody else has, in no other story of this process."""
    generator = np.random.default_rng([seed, next(_FRESH)])
    values = ModelBuffer(port.coordinator.model.layout)
    values.parameters[:] = generator.normal(scale=scale, size=values.parameters.size)
    values.statistics[:] = generator.normal(scale=scale, size=values.statistics.size)
    return values


def constant(port: OpenServer, value: float) -> ModelBuffer:
    """Returns an update that is the same everywhere."""
    values = ModelBuffer(port.coordinator.model.layout)
    values.parameters[:] = value
    values.statistics[:] = value
    return values


def messages_of(
    port: OpenServer,
    node: Node,
    values: ModelBuffer,
    *,
    loss_sum: float = 1.0,
    evaluation: EvaluationReport | None = None,
    round_number: int | None = None,
) -> list[bytes]:
    """Returns an update as the messages of a call; of the round that runs."""
    header = UpdateHeader(
        round=round_number or round_of(port),
        layout=layout_of_run(port),
        examples=port.node.plan.training.batch_size,
        loss_sum=loss_sum,
        countersignature=countersigned(port, node),
        evaluation=evaluation,
    )
    wire = wire_format(
        port.node.plan.training.wire,
        values.layout,
        workers=len(port.node.plan.workers),
    )
    chunks = [wire.encode(values, number) for number in range(wire.chunk_count)]
    return [encode_header(header), *chunks]


def round_of(port: OpenServer) -> int:
    """Returns the number of the model that is out."""
    published = port.coordinator._published
    return published.header.round if published else 1


async def next_model(call: Contributing) -> tuple[ModelHeader, bytes]:
    """Returns the model that answers an update."""
    messages: list[bytes] = []
    while isinstance(message := await call.read(), bytes):
        messages.append(message)
    return model_in(messages)


def plant_values(canaries: Canaries, name: str, values: ModelBuffer) -> None:
    """Looks for an update from now on: its bytes, and its first value as text."""
    canaries.plant(name, values.parameters.tobytes()[:_MARK_BYTES])
    canaries.plant(name, values.statistics.tobytes()[-_MARK_BYTES:])
    canaries.plant(name, repr(float(values.parameters[0])).encode())


def plant_number(canaries: Canaries, name: str, number: float) -> float:
    """Looks for a number from now on: its bytes, and its digits; returns it."""
    for order in "<>":
        canaries.plant(name, struct.pack(f"{order}d", number))
    canaries.plant(name, repr(number).encode())
    return number


def updates_held(*, but: frozenset[int] = frozenset()) -> list[Update | Receiver]:
    """Returns all updates in this process, whole and on their way.

    Args:
        but: Which are not meant (`id`): of stories that are over, and whose calls gRPC
            has not taken apart yet.
    """
    gc.collect()
    return [
        it
        for it in newer_objects()
        # By type: to ask others' objects for their class may run their code.
        if type(it) in {Update, Receiver} and id(it) not in but
    ]


def others_held() -> frozenset[int]:
    """Returns which updates there are before a story has any (`updates_held`)."""
    return frozenset(map(id, updates_held()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Veiled:
    """Bytes that are looked for in memory, without being found in this very object.

    Attributes:
        marks: They, under a veil.
    """

    marks: tuple[bytes, ...]


def holders_of(secrets: Iterable[Veiled]) -> list[str]:
    """Returns what kinds of objects hold any of these; an empty list if none does."""
    marks = [_veil(mark) for secret in secrets for mark in secret.marks]
    gc.collect()
    # What is new is little: who waits for the end of something looks there first.
    return _holders(newer_objects(), marks) or _holders(older_objects(), marks)


def _holders(objects: list[Any], marks: list[bytes]) -> list[str]:
    # At once for all objects: there are some hundred thousand.
    held = {
        id(it): it
        for it in gc.get_referents(*objects)
        # By type, as in `updates_held`.
        if type(it) in _HOLD_BYTES and _is_long(it)
    }
    found = {
        key
        for key, it in held.items()
        if not any(it is mark for mark in marks)
        and any(mark in _content(it) for mark in marks)
    }
    if not found:
        return []
    return sorted(
        type(holder).__name__
        for holder in objects
        if any(id(it) in found for it in gc.get_referents(holder))
    )


def veiled(values: ModelBuffer) -> Veiled:
    """Returns an update to look for, which is overwritten where it lies."""
    marks = (
        values.parameters.tobytes()[:_MARK_BYTES],
        values.parameters.tobytes()[-_MARK_BYTES:],
        values.statistics.tobytes()[-_MARK_BYTES:],
    )
    values.data[:] = 0
    return Veiled(marks=tuple(_veil(mark) for mark in marks))


def veiled_bytes(mark: bytes) -> Veiled:
    """Returns bytes to look for; as many as can be told from noise."""
    assert len(mark) == _MARK_BYTES
    return Veiled(marks=(_veil(mark),))


def reported(examples: int = 1, **sums: float) -> EvaluationReport:
    """Returns an evaluation."""
    return EvaluationReport(examples=examples, sums=sums)


def changed(messages: list[bytes], **fields: object) -> list[bytes]:
    """Returns an update whose header says something else."""
    header = msgspec.msgpack.decode(messages[0])
    return [msgspec.msgpack.encode({**header, **fields}), *messages[1:]]


def _is_long(it: Any) -> bool:
    if type(it) is bytes:
        return len(it) >= _MARK_BYTES
    return it.base is None and it.dtype != object


def _content(it: Any) -> bytes:
    return it if isinstance(it, bytes) else it.tobytes()


def _veil(mark: bytes) -> bytes:
    return bytes(byte ^ _VEIL for byte in mark)
