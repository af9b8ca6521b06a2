"""Kills anything at any time: does a run come to its end, and to the very same bits?

A real federation on the simulated platform: a server, three workers and everybody's
custodian, each a process of its own, kept running by a supervisor as a system would.
Processes are killed by SIGKILL, one or all at once; stopped for a while by SIGSTOP; and
as root, where each has its own network namespace, links are cut and restored. Some
blows fall when the run has recovered from the last one, some while it is still at it;
one falls when training is over and the model is being sealed.

The same deployment is run without any blow first. What is compared is the model that
its owner opens, byte for byte; then the audit log is verified from end to end. Many
kills are spread over several runs: a custodian lets no party's node come more often
than sixty times an hour.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chaos_blows import Blows
from chaos_network import Host, can_move, enter, make_hosts
from chaos_run import NODES, started
from chaos_scene import SERVICES, Deployment, make_deployment
from chaos_schedule import draw_blows, draw_last
from cloister.plan.training import Mode
from reporting import machine

# Rounds until one blow has passed and the next one falls: enough of them.
_ROUNDS_A_KILL = 20
_ROUNDS_BEFORE = 40
# Of one run: some hit the same node, and each is one more warrant.
_KILLS_A_RUN = 50
# A model of a softmax regression is trained in less; the rest is for starting.
_SECONDS_A_KILL = 30
_SECONDS_BEFORE = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be done.

    Attributes:
        kills: How many blows are to kill.
        seed: Of the blows.
        mode: What a worker does in a round.
        with_network: Whether everybody gets a network namespace.
    """

    kills: int
    seed: int
    mode: Mode
    with_network: bool

    @property
    def rounds(self) -> int:
        """Rounds of the plan."""
        return _ROUNDS_BEFORE + _ROUNDS_A_KILL * self.kills

    @property
    def most_seconds(self) -> int:
        """When it is given up."""
        return _SECONDS_BEFORE + _SECONDS_A_KILL * self.kills


async def quiet(deployment: Deployment) -> float:
    """Returns how long the run takes that nothing happens to."""
    began = time.monotonic()
    async with started(deployment) as run:
        await run.finish()
    if run.restarts or run.failures:
        raise RuntimeError(f"the quiet run was not quiet: {run.failures}")
    return time.monotonic() - began


async def disturbed(
    deployment: Deployment, order: Order, hosts: Mapping[str, Host]
) -> dict[str, Any]:
    """Returns what became of the run that blows fall on."""
    blows = draw_blows(
        SERVICES, kills=order.kills, seed=order.seed, with_cuts=bool(hosts)
    )
    last = draw_last(NODES, seed=order.seed)
    began = time.monotonic()
    async with started(deployment, hosts) as run:
        falling = Blows(run, rounds=deployment.rounds, hosts=hosts)
        try:
            await falling.fall([*blows, last])
            await run.finish()
        finally:
            await falling.cease()
    fallen = falling.fallen
    return {
        "kills": fallen["kill"] + fallen["kill-all"],
        "kills_of_all": fallen["kill-all"],
        "stops": fallen["stop"],
        "cuts": fallen["cut"],
        "restarts": run.restarts,
        "rounds_again": run.rounds_again,
        "failures": [asdict(failure) for failure in run.failures],
        "disturbed_seconds": round(time.monotonic() - began, 3),
        "recovery_seconds": dict(falling.recoveries),
    }


async def compare(directory: Path, order: Order) -> dict[str, Any]:
    """Returns what became of a disturbed run, beside the quiet one."""
    undisturbed = make_deployment(
        directory / "quiet", mode=order.mode, rounds=order.rounds
    )
    deployment = undisturbed.copy(directory / "disturbed")
    quiet_seconds = await quiet(undisturbed)
    hosts: dict[str, Host] = {}
    if order.with_network:
        hosts = make_hosts(SERVICES)
        deployment.move({name: host.address for name, host in hosts.items()})
    try:
        result = await disturbed(deployment, order, hosts)
    finally:
        for host in hosts.values():
            host.remove()
    identical = deployment.opened_model() == undisturbed.opened_model()
    audit = deployment.verified_audit()
    return {
        **result,
        "rounds": order.rounds,
        "bit_identical": identical,
        "audit_records": audit["records"],
        "quiet_seconds": round(quiet_seconds, 3),
        "namespaces": len(hosts),
    }


def runs_of(order: Order) -> list[Order]:
    """Returns the runs over which an order's kills are spread, each with its seed."""
    count = max(1, -(-order.kills // _KILLS_A_RUN))
    return [
        replace(order, kills=len(range(it, order.kills, count)), seed=order.seed + it)
        for it in range(count)
    ]


def together(order: Order, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what became of all runs of an order."""
    recoveries: dict[str, list[float]] = {}
    for result in results:
        for kind, seconds in result["recovery_seconds"].items():
            recoveries.setdefault(kind, []).extend(seconds)
    summed = {
        name: sum(result[name] for result in results)
        for name, value in results[0].items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return {
        **summed,
        "namespaces": results[0]["namespaces"],
        "failures": [it for result in results for it in result["failures"]],
        "bit_identical": all(result["bit_identical"] for result in results),
        "recovery_seconds": {
            kind: {
                "count": len(seconds),
                "median": round(statistics.median(seconds), 3),
                "max": round(max(seconds), 3),
            }
            for kind, seconds in sorted(recoveries.items())
        },
        "runs": len(results),
        "seed": order.seed,
        "mode": order.mode,
        "machine": machine(),
    }


async def bounded(order: Order) -> dict[str, Any]:
    """Does it all, and ends in order when it is told to, or takes too long."""
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    results = []
    for each in runs_of(order):
        with tempfile.TemporaryDirectory(prefix="cloister-chaos-") as scratch:
            async with asyncio.timeout(each.most_seconds):
                results.append(await compare(Path(scratch), each))
    return together(order, results)


def main() -> None:
    """Runs both and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="blows that kill")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--mode", choices=("sync-sgd", "fedavg"), default="sync-sgd")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--no-network", action="store_true", help="no namespaces, so nothing is cut"
    )
    options = parser.parse_args()
    order = Order(
        kills=options.kills,
        seed=options.seed,
        mode=options.mode,
        with_network=not options.no_network and can_move(),
    )
    if order.with_network:
        enter()
    try:
        result = asyncio.run(bounded(order))
    except asyncio.CancelledError:
        sys.exit("interrupted")
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:>20}  {value}")
    if not result["bit_identical"] or result["failures"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
