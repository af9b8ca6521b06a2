"""A process that revokes a key and is killed at one step of it.

Arguments: the register's file, the keyring's file, the identity that opens it, the key,
and at which write of the keyring it dies, and on which side of it: ``1-before``,
``1-after``, ``2-before`` or ``2-after``. Then, if it is not to be `START`, the time.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime
from pathlib import Path

from tests.support.registers import START

from cloister.custody import keyring
from cloister.custody.key_store import RegisterKeys
from cloister.custody.register import Register
from cloister.storage.whole_file import write_whole


def main() -> None:
    database, ring, identity, key, when, *time = sys.argv[1:]
    at = datetime.fromisoformat(time[0]) if time else START
    number, side = when.split("-")
    written = 0

    def write_and_die(path: Path, content: bytes) -> None:
        nonlocal written
        written += 1
        last = written == int(number)
        if last and side == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        write_whole(path, content)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    with Register.open(Path(database)) as register:
        lock = keyring.IdentityFile(path=Path(identity))
        keys = RegisterKeys.open(register, path=Path(ring), lock=lock)
        # The real write, and a power cut beside it.
        keyring.write_whole = write_and_die  # type: ignore[attr-defined]
        keys.revoke(key, at=at)


if __name__ == "__main__":
    main()
