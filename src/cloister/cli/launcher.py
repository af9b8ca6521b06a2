"""Starts the custodians and nodes of a plan on this machine, and sees them through.

Not the recipients: there is nothing for them before the model is sealed.

The custodians come first and go last: a node waits for its warrant, and deposits how
far it came until its end. The first process to fail decides how the run ends; the
others are stopped then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from cloister.cli.exit_codes import ExitCode
from cloister.cli.own_output import prints_of
from cloister.cli.places import default_custodian_path
from cloister.cli.processes import (
    Event,
    Member,
    Printing,
    RunOutcome,
    start_member,
    stop_members,
)
from cloister.plan.plan import Party, Plan

Following = dict[asyncio.Task[RunOutcome], Member]


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
    """

    def __init__(
        self,
        plan: Plan,
        plan_path: Path,
        *,
        on_event: Callable[[Event], None],
        only: Collection[str] | None = None,
    ) -> None:
        self._plan = plan
        self._plan_path = plan_path
        self._on_event = on_event
        self._only = only

    async def run(self) -> RunOutcome:
        """Starts everybody and waits until all nodes have ended.

        Raises:
            PlatformError: If a process cannot be started.
        """
        custodians: Following = {}
        nodes: Following = {}
        try:
            for party in self._plan.party:
                await self._start_custodian(party, custodians)
            failed = await _until_all_said(custodians, "custodian-listening")
            if failed is not None:
                return failed
            for party in (self._plan.server, *self._plan.workers):
                if self._only is None or party.name in self._only:
                    await self._start_node(party, nodes)
            return await _until_end(nodes, custodians)
        finally:
            for group in (nodes, custodians):
                await stop_members(group.values())
                await asyncio.gather(*group, return_exceptions=True)

    async def _start_custodian(self, party: Party, started: Following) -> None:
        path = default_custodian_path(self._plan_path, party.name)
        if not path.exists():
            return
        member = await start_member(
            f"custodian of {party.name}", ["custodian", "serve", str(path)]
        )
        following = member.follow(self._on_event, party=party.name, service="custodian")
        started[asyncio.create_task(following)] = member

    async def _start_node(self, party: Party, started: Following) -> None:
        arguments = [party.role, "--plan", str(self._plan_path)]
        if party.role == "worker":
            arguments += ["--party", party.name]
        member = await start_member(party.name, arguments)
        following = member.follow(
            self._on_event,
            prints=printing_of(party),
            party=party.name,
        )
        started[asyncio.create_task(following)] = member


def printing_of(party: Party) -> Printing:
    """Returns what becomes of what a party's task prints.

    A worker by identity is its owner's own machine. An attested node runs among others'
    eyes, so whatever its task lets slip goes nowhere: the node sees to that, and nobody
    here would listen.
    """
    told = prints_of(party, as_json=True) == "as-events"
    return "shown" if told else "unheard"


async def _until_all_said(members: Following, kind: str) -> RunOutcome | None:
    """Returns None when every member said an event, or how the first of them ended."""
    everybody = asyncio.create_task(_all_said(members.values(), kind))
    waited_for: set[asyncio.Task[object]] = {everybody, *members}
    try:
        done, _ = await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
        return next((_too_early(it.result()) for it in members if it in done), None)
    finally:
        everybody.cancel()


async def _all_said(members: Iterable[Member], kind: str) -> None:
    for member in members:
        await member.said(kind).wait()


async def _until_end(nodes: Following, custodians: Following) -> RunOutcome:
    """Returns how the run ended; a custodian that ends before the nodes has failed."""
    pending = set(nodes)
    while pending:
        done, _ = await asyncio.wait(
            pending | set(custodians), return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            outcome = task.result()
            if task in custodians:
                return _too_early(outcome)
            if outcome.code != ExitCode.OK:
                return outcome
        pending -= done
    return RunOutcome(code=ExitCode.OK)


def _too_early(outcome: RunOutcome) -> RunOutcome:
    """Returns how a custodian ended, which is a failure even if it says OK."""
    return replace(outcome, code=outcome.code or ExitCode.PLATFORM)
