"""Our rounds beside Flower's, in one run on one machine: how many times faster?

The peer is Flower's deployment engine: a SuperLink, two SuperNodes and an app of FedAvg
over TLS, from its package in a virtual environment of its own, which is made the first
time (that downloads it). Ours are the rounds of `rounds.py`: attested, with audit log
and custodians. Neither computes anything. Ours are measured before the peer's and
after.

A round of the peer is counted from where its strategy chooses the nodes to where it has
the mean; what it does between two rounds is not counted. Ours are whole.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
from pathlib import Path

from flower_peer import Peer, cache_directory, install, peer
from reporting import Figure, report
from rounds_run import federation
from rounds_task import BIG, SMALL, Size

REACH_BIG, REACH_SMALL = 20.0, 400.0
BURST_BIG, BURST_SMALL = 5, 40
PEER_SECONDS = 300.0


def compared(
    directory: Path, other: Peer, size: Size, *, rounds: int, burst: int, reach: float
) -> list[Figure]:
    """Measures rounds of one size.

    Args:
        directory: Where our run's files go; must not exist.
        other: The peer.
        size: The model's size.
        rounds: Of the peer.
        burst: Of ours, before and after.
        reach: How many times faster ours are to be.
    """
    with federation(directory, size=size, burst=burst) as run:
        run.burst()
        ours = run.burst()
        theirs = other.rounds(size, rounds, within=PEER_SECONDS)
        ours += run.burst()
        peak = run.server.memory().peak
    our_round, their_round = statistics.median(ours), statistics.median(theirs.seconds)
    ratio = their_round / our_round
    return [
        Figure(
            name=f"round, {size.size_bytes / 1e6:.1f} MB, Flower",
            value=their_round,
            unit="s",
        ),
        Figure(name="  ours", value=our_round, unit="s"),
        Figure(
            name="  ratio",
            value=ratio,
            unit="times",
            reach=f"at least {reach:g}",
            ok=ratio >= reach,
        ),
        Figure(name="  peak of Flower's ServerApp", value=theirs.peak / 1e6, unit="MB"),
        Figure(name="  peak of our server", value=peak / 1e6, unit="MB"),
    ]


def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="the small model alone")
    parser.add_argument("--rounds", type=int, default=4, help="of the peer")
    parser.add_argument(
        "--directory", type=Path, default=cache_directory(), help="of the peer"
    )
    options = parser.parse_args()
    # The peer's processes would outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    commands = install(options.directory.resolve())
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "peer").mkdir()
        with peer(commands, place / "peer") as other:
            figures = compared(
                place / "small",
                other,
                SMALL,
                rounds=options.rounds,
                burst=BURST_SMALL,
                reach=REACH_SMALL,
            )
            if not options.quick:
                figures += compared(
                    place / "big",
                    other,
                    BIG,
                    rounds=options.rounds,
                    burst=BURST_BIG,
                    reach=REACH_BIG,
                )
    report("rounds that compute nothing, beside Flower", figures, as_json=options.json)


if __name__ == "__main__":
    main()
