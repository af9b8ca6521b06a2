"""Whether a directory's file system is in memory alone, by the kernel's list of mounts.

Where that cannot be told, the least is claimed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cloister.storage.mirror.subject import Survives

MOUNTS: Final = Path("/proc/self/mountinfo")

_IN_MEMORY: Final = frozenset({"devtmpfs", "hugetlbfs", "ramfs", "rootfs", "tmpfs"})
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def survives_at(path: Path, *, mounts: Path = MOUNTS) -> Survives:
    """Returns what a file at `path` outlives.

    Args:
        path: The file; it need not be there.
        mounts: The kernel's list.
    """
    try:
        place = path.parent.resolve()
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return "process-death"
    kind = _kind_of(place, lines.splitlines())
    return "process-death" if kind is None or kind in _IN_MEMORY else "power-cut"


def _kind_of(place: Path, lines: list[str]) -> str | None:
    # The deepest mount point above it; of several there, the last lies on top.
    kind, depth = None, 0
    for line in lines:
        fields, _, rest = line.partition(" - ")
        words = fields.split(" ")
        if len(words) < 5 or not rest:
            continue
        point = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), words[4]))
        if place.is_relative_to(point) and len(point.parts) >= depth:
            kind, depth = rest.split(" ")[0], len(point.parts)
    return kind
