"""What this process holds of single parties' updates."""

from __future__ import annotations

from tests.support.reachable import newer_objects

from cloister.federation.updates import Receiver, Update


def held_bytes() -> int:
    """Returns how many bytes of updates are held, coming or whole."""
    # By type: to ask others' objects for their class may run their code.
    objects = newer_objects()
    coming = [it for it in objects if type(it) is Receiver]
    whole = [it for it in objects if type(it) is Update]
    return sum(len(chunk) for it in coming for chunk in it._chunks) + sum(
        it.held_bytes for it in whole
    )
