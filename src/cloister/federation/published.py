"""What the coordinator hands out: models as they are sent, and the end of training.

A model's bytes are made from the model itself, a chunk at a time, and the newest few
are kept for all who are at the same place; so nothing here has a model's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from cloister.errors import CloisterError, ProtocolError
from cloister.federation.audit_records import Participant
from cloister.federation.layout import ModelBuffer
from cloister.federation.messages import ModelHeader, encode_header
from cloister.federation.wire_format import WireFormat

_KEPT_CHUNKS = 8


class Published:
    """A model as it is sent: the same bytes to every worker.

    Args:
        header: What goes before it, without its first chunk.
        model: Its values; they belong to the coordinator, which ends the sending
            (`end`) before it changes them.
        wire: How it is cut into chunks.
    """

    def __init__(
        self, header: ModelHeader, model: ModelBuffer, wire: WireFormat
    ) -> None:
        self.header = header
        self._model = model
        self._wire = wire
        self._kept: dict[int, bytes] = {}
        self._ended: CloisterError | None = None

    @property
    def message_count(self) -> int:
        """How many messages it is."""
        return max(1, self._wire.chunk_count)

    def end(self, error: CloisterError) -> None:
        """Ends the sending; who has not all of it gets no more."""
        self._ended = error
        self._kept.clear()

    def message(self, number: int) -> bytes:
        """Returns a message: the header with the first chunk, or another chunk.

        Raises:
            CloisterError: If the sending was ended.
        """
        if self._ended is not None:
            raise self._ended
        kept = self._kept.get(number)
        if kept is None:
            kept = self._encode(number)
            while len(self._kept) >= _KEPT_CHUNKS:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = kept
        return kept

    def _encode(self, number: int) -> bytes:
        if not self._wire.chunk_count:
            return encode_header(self.header)
        chunk = self._wire.encode(self._model, number)
        if number:
            return chunk
        return encode_header(msgspec.structs.replace(self.header, first_chunk=chunk))


def superseded(round_number: int) -> ProtocolError:
    """Returns what is told to who was still receiving a model that is gone."""
    return ProtocolError(
        f"the model of round {round_number} is not current any more",
        code="model-superseded",
        expected="a model received before its round ends",
        remedy="Ask for the current one.",
    )


def stopped() -> ProtocolError:
    """Returns what workers are told of a server that another can take the place of."""
    return ProtocolError(
        "the server was stopped",
        code="server-stopped",
        expected="a run to its end",
        got="an interruption at the server",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How training ended.

    Attributes:
        model: Header of the final model.
        reports: Who reported on it, in plan order.
    """

    model: ModelHeader
    reports: tuple[Participant, ...]


@dataclass(slots=True)
class Traffic:
    """Payload bytes since the run began, as the server sees them."""

    received: int = 0
    sent: int = 0
