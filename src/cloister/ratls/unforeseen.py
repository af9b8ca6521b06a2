"""What no error of ours foresaw, at the edge of a port: a bug, here or in a library.

gRPC would send such an exception's text to the peer, and print its traceback. Either
may quote anything, keys as well. So it becomes an error of ours that has the kind of
exception and the line it came from, and none of its words.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath

from cloister.errors import PlatformError


def unforeseen(error: Exception) -> PlatformError:
    """Returns what may be told of `error`; a peer hears the first line and the code."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{PurePath(it.filename).name}:{it.lineno}" for it in frames[-1:]]
    return PlatformError(
        "something went wrong here",
        code="unforeseen-error",
        expected="no exception but our own",
        got=" at ".join([type(error).__name__, *where]),
        remedy="Report it: this is a mistake in the program.",
    )
