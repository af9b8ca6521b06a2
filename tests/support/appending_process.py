"""A process that appends to a log and says so, until it is ended.

Arguments: the log's file. It writes a line when it is ready and begins when it can read
one. Then it writes the head after each record, as one line in one write.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.support.audit_signing import PartySigner

from cloister.storage.audit_file import AuditFile

# Everybody knows it: the test checks what this process signed.
KEY = bytes(range(32))


def main() -> None:
    signer = PartySigner(Ed25519PrivateKey.from_private_bytes(KEY))
    # Larger than a page, so that one write is not one step of the kernel's.
    filling = b"a" * 20_000
    with AuditFile.open(Path(sys.argv[1])) as log:
        os.write(1, b"ready\n")
        sys.stdin.readline()
        for number in count(log.length):
            entry = b'{"kind":"filling","number":%d,"text":"%b"}' % (number, filling)
            link = log.append(entry, at_ms=number, signer=signer)
            os.write(1, link.head.encode() + b"\n")


if __name__ == "__main__":
    main()
