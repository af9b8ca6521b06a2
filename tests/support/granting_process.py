"""A process that grants warrants from a register and says so, until it is ended.

Arguments: the register's file, the plan's hash in hex, the number of the first node,
how many, and how many hours after the start. It writes a line when it is ready and
begins when it can read one. Then it writes each epoch and node once it is durable, as
one line in one write.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

from tests.support.registers import LIFE, START, key_of_node, shown_by

from cloister.custody.register import Register
from cloister.plan.plan import PlanHash


def main() -> None:
    path, digest, first, count, hours = sys.argv[1:]
    at = START + timedelta(hours=int(hours))
    with Register.open(Path(path)) as register:
        plan = register.plan(PlanHash(bytes.fromhex(digest)))
        os.write(1, b"ready\n")
        sys.stdin.readline()
        for node in range(int(first), int(first) + int(count)):
            shown = shown_by(plan, key_of_node(node), party=register.party)
            terms = register.grant(shown, collateral=None, at=at, life=LIFE)
            os.write(1, b"%d %d\n" % (terms.epoch, node))


if __name__ == "__main__":
    main()
