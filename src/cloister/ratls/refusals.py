"""Errors on the wire: what one side tells the other when it will not go on."""

from __future__ import annotations

import msgspec

from cloister.errors import CloisterError, ProtocolError, RefusedByPeer
from cloister.ratls.challenge import Refusal

_LINE = 600
_decoder = msgspec.json.Decoder(Refusal)


def refusal_from(error: CloisterError) -> Refusal:
    """Returns `error` as a message, cut to the lengths a message may have."""
    return Refusal(
        code=error.code[:64],
        what=error.what[:_LINE],
        expected=error.expected[:_LINE],
        got=error.got[:_LINE],
    )


def refused_by_peer(peer: str, refusal: Refusal) -> RefusedByPeer:
    """Returns the error a node raises when `peer` refused it.

    The words come from the peer, so they are shown as its words and in one line.
    """
    shown = _in_lines(refusal)
    return RefusedByPeer(
        f"{peer} refused this node: {shown.what}",
        code=shown.code,
        expected=shown.expected,
        got=shown.got,
    )


def encode_status(error: CloisterError) -> str:
    """Returns `error` as the details of a gRPC status."""
    return msgspec.json.encode(refusal_from(error)).decode()


def decode_status(details: str | None) -> Refusal:
    """Returns the refusal in a gRPC status, its words in harmless lines.

    Raises:
        ProtocolError: If the status carries none, as when the connection broke.
    """
    try:
        return _in_lines(_decoder.decode(details or ""))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(
            "the call ended without a reason of ours",
            code="call-broken",
            got=one_line((details or "nothing")[:200]),
        ) from error


def one_line(text: str) -> str:
    """Returns a peer's words as one line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _in_lines(refusal: Refusal) -> Refusal:
    return Refusal(
        code=one_line(refusal.code),
        what=one_line(refusal.what),
        expected=one_line(refusal.expected),
        got=one_line(refusal.got),
    )
