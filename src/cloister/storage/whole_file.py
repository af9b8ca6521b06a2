"""Files that appear under their name complete or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, readable by its owner only; replaces what was there.

    The content is on the disk when this returns. If it raises before the file has its
    name, nothing is left behind.

    Raises:
        OSError: If it cannot be written.
    """
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write that takes the place of `path` when the block ends.

    It is readable by its owner only, and on the disk when this ends. If the block
    raises, nothing is left behind, and what was there stays.

    Raises:
        OSError: If it cannot be written.
    """
    # mkstemp gives mode 0600 from the first moment on.
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=".part"
    )
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        # Also on Ctrl-C: a part of a model is never left behind.
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
