"""Several peers are judged at once: what reads their collateral meets that first.

In a process of its own, for what went wrong here ended the process.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, threading
from msgspec import defstruct
from cloister.attestation.signed_json import read_document

sys.setswitchinterval(1e-6)
TEXT = b"{" + b",".join(b'"f%d":{"svn":%d}' % (n, n) for n in range(20)) + b"}"

for _ in range(60):
    # Forms that nobody has met.
    parts = [defstruct(f"Part{n}", [("svn", int)]) for n in range(20)]
    form = defstruct("Form", [(f"f{n}", part) for n, part in enumerate(parts)])
    at_once = threading.Barrier(4)

    def read():
        at_once.wait()
        assert read_document(TEXT, form, what="document").f7.svn == 7

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_that_read_a_form_for_the_first_time_do_not_end_the_process() -> None:
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
