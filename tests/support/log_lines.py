"""Lines of an audit log for whoever reads its end alone, and believes nothing of it."""

from __future__ import annotations

import msgspec

from cloister.storage.dsse import Envelope, encode_envelope


def record(kind: str, **members: object) -> bytes:
    """Returns a log's line of a kind, which nobody signed."""
    entry = {"kind": kind, **members}
    payload = msgspec.json.encode({"seq": 0, "entry": entry})
    return encode_envelope(Envelope(payload=payload, keyid="k", signature=b"s")) + b"\n"
