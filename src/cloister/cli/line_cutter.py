"""Lines out of a stream that may say anything, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator


class LineCutter:
    """Cuts what comes in pieces into lines; of a line that is too long, its beginning.

    Args:
        most_bytes: How much of a line is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._begun = bytearray()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Returns the lines that end in a piece, without their ends."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._keep(part)
            yield self._take()
        self._keep(rest)

    def end(self) -> bytes:
        """Returns what came after the last end of a line."""
        return self._take()

    def _keep(self, part: bytes) -> None:
        self._begun += part[: self._most - len(self._begun)]

    def _take(self) -> bytes:
        line = bytes(self._begun)
        self._begun.clear()
        return line


def printable(text: str) -> str:
    """Returns a line of text without what steers a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
