"""Starts the custodians and nodes of a plan on this machine, and sees them through.

Not the recipients: there is nothing for them before the model is sealed.

The custodians come first and go last: a node waits for its warrant, and deposits how
far it came until its end. What is killed is started again (`keeping`). The first
process that fails by itself decides how the run ends; the others are stopped then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from cloister.cli.exit_codes import ExitCode
from cloister.cli.keeping import Deaths, KeptProcess, Role, stop_kept
from cloister.cli.own_output import prints_of
from cloister.cli.places import default_custodian_path
from cloister.cli.processes import Event, Member, Printing, RunOutcome, start_member
from cloister.plan.plan import Party, Plan

Keeping = dict[asyncio.Task[RunOutcome], KeptProcess]

# When the server is through, its workers end within a moment. One that was killed just
# then, and started again, finds no server any more.
_SEE_OFF_SECONDS = 20.0
# From this event on a node has begun anew; before it, it has to be told again.
_BEGAN = {"server": "audit-opened", "worker": "warranted"}


class Launcher:
    """Runs the custodians and nodes of one plan.

    Args:
        plan: The plan.
        plan_path: Its file; sites and custodians lie where `init` puts them. A party
            without a custodian there has one elsewhere.
        on_event: Told of every event of every process, as it comes. Those of a
            custodian have ``"service": "custodian"``. What the task of a worker by
            identity prints comes as ``printed``; it goes into no log.
        only: Whose nodes to start; None for the server's and all workers'.
        fresh: Whether the nodes begin anew.
    """

    def __init__(
        self,
        plan: Plan,
        plan_path: Path,
        *,
        on_event: Callable[[Event], None],
        only: Collection[str] | None = None,
        fresh: bool = False,
    ) -> None:
        self._plan = plan
        self._plan_path = plan_path
        self._on_event = on_event
        self._only = only
        self._fresh = fresh
        self._deaths = Deaths()

    async def run(self) -> RunOutcome:
        """Starts everybody and waits until all nodes have ended.

        Raises:
            PlatformError: If a process cannot be started.
        """
        custodians: Keeping = {}
        nodes: Keeping = {}
        try:
            for party in self._plan.party:
                self._keep_custodian(party, custodians)
            failed = await _until_all_said(custodians, "custodian-listening")
            if failed is not None:
                return failed
            for party in (self._plan.server, *self._plan.workers):
                if self._only is None or party.name in self._only:
                    self._keep(self._node(party), nodes)
            return await self._until_end(nodes, custodians)
        finally:
            for group in (nodes, custodians):
                await stop_kept(group.values())
                await asyncio.gather(*group, return_exceptions=True)

    def _keep(self, role: Role, kept: Keeping) -> None:
        process = KeptProcess(role, on_event=self._on_event, deaths=self._deaths)
        kept[asyncio.create_task(process.keep())] = process

    def _keep_custodian(self, party: Party, kept: Keeping) -> None:
        path = default_custodian_path(self._plan_path, party.name)
        if not path.exists():
            return
        name = f"custodian of {party.name}"

        async def start(_: frozenset[str]) -> Member:
            return await start_member(name, ["custodian", "serve", str(path)])

        always = {"party": party.name, "service": "custodian"}
        role = Role(name=name, service="custodian", start=start, always=always)
        self._keep(role, kept)

    def _node(self, party: Party) -> Role:
        arguments = [party.role, "--plan", str(self._plan_path)]
        if party.role == "worker":
            arguments += ["--party", party.name]

        async def start(said: frozenset[str]) -> Member:
            anew = self._fresh and _BEGAN[party.role] not in said
            return await start_member(
                party.name, [*arguments, "--fresh"] if anew else arguments
            )

        return Role(
            name=party.name,
            service=party.role,
            start=start,
            always={"party": party.name},
            prints=printing_of(party),
        )

    async def _until_end(self, nodes: Keeping, custodians: Keeping) -> RunOutcome:
        """Returns how the run ended; a custodian that ends before it has failed."""
        pending = set(nodes)
        while pending:
            done, _ = await asyncio.wait(
                pending | set(custodians), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done & set(custodians):
                return _too_early(task.result())
            for task in done:
                if self._is_server(nodes[task]) and is_well(task.result(), nodes[task]):
                    return await see_off({it: nodes[it] for it in pending - {task}})
            for task in done:
                if not is_well(task.result(), nodes[task]):
                    return task.result()
            pending -= done
        return RunOutcome(code=ExitCode.OK)

    def _is_server(self, process: KeptProcess) -> bool:
        return process.role.name == self._plan.server.name


def printing_of(party: Party) -> Printing:
    """Returns what becomes of what a party's task prints.

    A worker by identity is its owner's own machine. An attested node runs among others'
    eyes, so whatever its task lets slip goes nowhere: the node sees to that, and nobody
    here would listen.
    """
    told = prints_of(party, as_json=True) == "as-events"
    return "shown" if told else "unheard"


async def _until_all_said(processes: Keeping, kind: str) -> RunOutcome | None:
    """Returns None when every process said an event, or how the first of them ended."""
    everybody = asyncio.create_task(_all_said(processes.values(), kind))
    waited_for: set[asyncio.Task[object]] = {everybody, *processes}
    try:
        done, _ = await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        return next((_too_early(it.result()) for it in processes if it in done), None)
    finally:
        everybody.cancel()


async def _all_said(processes: Iterable[KeptProcess], kind: str) -> None:
    for process in processes:
        await process.said(kind).wait()


async def see_off(
    workers: Keeping, *, patience_seconds: float = _SEE_OFF_SECONDS
) -> RunOutcome:
    """Returns how a run ended whose server came to its end.

    The model is sealed by then, and all that a worker leaves as well: it seals the
    graph before it reports. So one that still looks for the server is stopped.

    Args:
        workers: The nodes that were not seen to end.
        patience_seconds: How long each may take to end by itself.
    """
    if not workers:
        return RunOutcome(code=ExitCode.OK)
    ended, left = await asyncio.wait(workers, timeout=patience_seconds)
    await stop_kept(workers[task] for task in left)
    for task in ended:
        outcome = task.result()
        if outcome.code != ExitCode.OK and not _missed_server(outcome):
            return outcome
    return RunOutcome(code=ExitCode.OK)


def is_well(outcome: RunOutcome, process: KeptProcess) -> bool:
    """Returns whether a node came to its end.

    A server that was killed after it sealed the model finds the run over.
    """
    if outcome.code == ExitCode.OK:
        return True
    return process.restarts > 0 and _code_of(outcome) == "run-exists"


def _missed_server(outcome: RunOutcome) -> bool:
    return _code_of(outcome) in {"server-gone", "server-unreachable", "server-stopped"}


def _code_of(outcome: RunOutcome) -> str:
    return str((outcome.failure or {}).get("code", ""))


def _too_early(outcome: RunOutcome) -> RunOutcome:
    """Returns how a custodian ended, which is a failure even if it says OK."""
    return replace(outcome, code=outcome.code or ExitCode.PLATFORM)
