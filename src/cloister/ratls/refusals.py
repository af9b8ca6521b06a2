"""Errors on the wire: what one side tells the other when it will not go on."""

from __future__ import annotations

import msgspec

from cloister.errors import (
    CloisterError,
    ConfigError,
    PeerInTrouble,
    PlatformError,
    ProtocolError,
    RefusedByPeer,
    StorageError,
)
from cloister.ratls.challenge import Refusal

_LINE = 600
_decoder = msgspec.json.Decoder(Refusal)


# What is wrong on this side is no peer's business: it may name paths and devices.
_OWN = (ConfigError, StorageError, PlatformError)
_OWN_WORDS = "it cannot go on; its own log says why"
# Nor are these a judgement of the peer: who has no collateral that counts today, or
# whose clock or register is wrong, could not judge anybody.
_OWN_CODES = ("pcs-", "collateral-", "clock-", "register-")
_OF_COLLATERAL = ("crl-", "tcb-info-", "qe-identity-")
_OUT_OF_DATE = ("-expired", "-not-yet-valid")
_BUSY = "-busy"
# A node that came too often: perhaps its host, or a network, cuts its connections.
_TOO_OFTEN = "warrant-limit"


def refusal_from(error: CloisterError) -> Refusal:
    """Returns `error` as a message, cut to the lengths a message may have."""
    if isinstance(error, _OWN):
        return bare_refusal_from(error)
    return Refusal(
        code=error.code[:64],
        what=error.what[:_LINE],
        expected=error.expected[:_LINE],
        got=error.got[:_LINE],
        trouble=is_trouble(error),
    )


def bare_refusal_from(error: CloisterError) -> Refusal:
    """Returns `error` as somebody hears it who has not shown who he is.

    Its code and its first line name no value of this side's: what was expected and
    what came stays in this side's log.
    """
    what = _OWN_WORDS if isinstance(error, _OWN) else error.what
    return Refusal(code=error.code[:64], what=what[:_LINE], trouble=is_trouble(error))


def refused_by_peer(peer: str, refusal: Refusal) -> RefusedByPeer | PeerInTrouble:
    """Returns the error a node raises when `peer` will not go on with it.

    The words come from the peer, so they are shown as its words and in one line.
    """
    shown = _in_lines(refusal)
    if shown.trouble:
        return PeerInTrouble(
            f"{peer} cannot go on for now: {shown.what}",
            code=shown.code,
            expected=shown.expected,
            got=shown.got,
        )
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
        trouble=refusal.trouble,
    )


def is_trouble(error: CloisterError) -> bool:
    """Tells whether `error` is this side's own: no judgement of the peer."""
    code = error.code
    out_of_date = code.startswith(_OF_COLLATERAL) and code.endswith(_OUT_OF_DATE)
    return (
        isinstance(error, _OWN)
        or code.startswith(_OWN_CODES)
        or code.endswith(_BUSY)
        or code == _TOO_OFTEN
        or out_of_date
    )
