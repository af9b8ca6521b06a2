"""A call that brings an update, from its first message to its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc

Messages = AsyncIterator[bytes]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


@dataclass(slots=True, kw_only=True)
class Contribution:
    """A call that brings an update.

    Attributes:
        messages: What the worker sends.
        context: The call.
        wanted: Whether it may send chunks; then they may be on their way.
        first_chunk: What came with its header, until that is taken.
    """

    messages: Messages
    context: Context
    wanted: bool = False
    first_chunk: bytes | None = field(default=None, repr=False)

    def take_first_chunk(self) -> bytes | None:
        """Returns what came with the header, once; nothing of it is kept."""
        first, self.first_chunk = self.first_chunk, None
        return first
