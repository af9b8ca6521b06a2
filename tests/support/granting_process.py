"""A process that grants warrants from a register and says so, until it is ended.

Arguments: the register's file, the plan's hash in hex, the number of the first node,
and how many. It writes a line when it is ready and begins when it can read one. Then it
writes each epoch and node once it is durable, as one line in one write.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.support.registers import LIFE, START, key_of_node

from cloister.custody.register import Register
from cloister.plan.plan import PlanHash


def main() -> None:
    path, digest, first, count = sys.argv[1:]
    with Register.open(Path(path)) as register:
        os.write(1, b"ready\n")
        sys.stdin.readline()
        for node in range(int(first), int(first) + int(count)):
            terms = register.grant(
                PlanHash(bytes.fromhex(digest)),
                tls_key=key_of_node(node),
                at=START,
                life=LIFE,
            )
            os.write(1, b"%d %d\n" % (terms.epoch, node))


if __name__ == "__main__":
    main()
