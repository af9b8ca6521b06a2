"""Builds a node from its plan and site: joins custody, platform, task and strategy.

The order matters. Everybody's consent to the plan is checked before anything else is
done. The plan's source files are read once; they are measured, and only then compiled.
The node's keys exist only in this process's memory. The warrant names them, so it is
asked for last: each new node takes the place of the one before it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

from structlog.typing import FilteringBoundLogger

from cloister.cli.host_time import utc_now
from cloister.cli.places import Place
from cloister.cli.platforms import open_prover, warn_if_refusable
from cloister.cli.sources import Sources, read_sources
from cloister.cli.trust import collateral_source, read_root
from cloister.custody.client import CustodianLine
from cloister.custody.node_keys import NodeKeys, gather_keys, other_shareholders
from cloister.errors import ConfigError
from cloister.federation.starting_model import Arrays, read_initial
from cloister.federation.strategies.strategy import Strategy
from cloister.federation.strategy_loading import load_strategy
from cloister.federation.task import Task
from cloister.federation.task_loading import load_task
from cloister.plan.consent import check_consents
from cloister.plan.plan import Plan, plan_hash
from cloister.plan.site import Address, parse_address
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.clock import FlooredClock
from cloister.ratls.epochs import EpochMemory
from cloister.ratls.identity import new_identity
from cloister.ratls.node import Node
from cloister.ratls.proofs import EvidenceProver
from cloister.ratls.warrant import HeldWarrant

# The clocks of honest machines differ by less.
_CLOCK_BEHIND = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltNode:
    """A node and what it runs.

    Attributes:
        node: The node; it has no warrant yet.
        task: The plan's task.
        strategy: The plan's own, if it has one; at the server alone.
        initial: The arrays that training starts from, if it names some; likewise.
    """

    node: Node
    task: Task
    strategy: Strategy | None
    initial: Arrays | None = field(repr=False)


async def build_node(place: Place, *, log: FilteringBoundLogger) -> BuiltNode:
    """Returns a node that was measured, and what it runs.

    Raises:
        CloisterError: If the plan is not signed by all, or any part is missing or does
            not fit the plan.
    """
    plan, party = place.plan, place.party
    share_addresses(place)  # a mistake there is told at once, not after a warrant
    clock = FlooredClock(utc_now)
    consents = check_consents(plan, place.plan_path, at=clock())
    clock.raise_floor(consents.newest, source="the newest consent")
    sources = read_sources(plan, place.plan_directory)
    # In threads, so that an interruption is heard meanwhile.
    prover = await asyncio.to_thread(open_prover, place, sources, log=log)
    appraiser = _appraiser(place, clock)
    if isinstance(prover, EvidenceProver):
        await asyncio.to_thread(
            warn_if_refusable,
            prover.platform,
            appraiser,
            plan.policy_of(party.name),
            log,
        )
    task = await asyncio.to_thread(
        load_task,
        sources.task,
        filename=plan.task.file,
        class_name=plan.task.class_,
        options=plan.task.options,
        simulated=plan.simulated,
    )
    strategy, initial = None, None
    if party.role == "server":
        strategy = await asyncio.to_thread(load_own_strategy, plan, sources)
        if plan.training.initial is not None:
            initial = await asyncio.to_thread(
                read_initial, plan.training.initial, place.plan_directory
            )
    node = Node(
        plan=plan,
        plan_hash=plan_hash(plan),
        role=party.role,
        party=party.name,
        identity=new_identity(),
        prover=prover,
        appraiser=appraiser,
        warrant=HeldWarrant(),
        epochs=EpochMemory(),
        clock=clock,
    )
    return BuiltNode(node=node, task=task, strategy=strategy, initial=initial)


def load_own_strategy(plan: Plan, sources: Sources) -> Strategy | None:
    """Returns the plan's own strategy; None where it names one of ours.

    Raises:
        ConfigError: If its file does not run, or its class is not a strategy.
    """
    own = plan.training.own_strategy
    if own is None or sources.strategy is None:
        return None
    return load_strategy(
        sources.strategy,
        filename=own.file,
        class_name=own.class_,
        options=own.options,
        simulated=plan.simulated,
    )


async def open_line(
    node: Node, place: Place, *, log: FilteringBoundLogger
) -> CustodianLine:
    """Returns the node's line to its custodian, after its first warrant came.

    Waits for the custodian, and for its party's consent, as long as the site says. The
    caller closes the line.

    Raises:
        CloisterError: If the custodian refuses, is refused, or does not come.
    """
    address = parse_address(place.site.custodian.address)
    line = CustodianLine(node, address, log=log)
    await line.first_warrant(patience_seconds=place.site.patience_seconds)
    behind = node.clock.behind()
    if behind > _CLOCK_BEHIND:
        log.warning(
            "clock-behind",
            seconds=round(behind.total_seconds()),
            reason="signed times say that it is later; this node goes by them",
        )
    return line


async def gather(
    node: Node, line: CustodianLine, place: Place, *, log: FilteringBoundLogger
) -> NodeKeys:
    """Returns the keys that the plan gives to the node, from all who keep them.

    Before any training: a share that is missing is known now, not after hours.

    Raises:
        CloisterError: If a custodian refuses, is refused, does not come, or gives
            another key; or if the site does not say where one listens.
    """
    platform = node.prover.platform if isinstance(node.prover, EvidenceProver) else None
    return await gather_keys(
        node,
        line,
        share_addresses=share_addresses(place),
        platform=platform,
        patience_seconds=place.site.patience_seconds,
        log=log,
    )


def share_addresses(place: Place) -> dict[str, Address]:
    """Returns where the custodians of other parties with a share listen.

    Raises:
        ConfigError: If the site leaves one out, or names one that nobody will ask.
    """
    needed = set(other_shareholders(place.plan, place.party))
    named = set(place.site.shares)
    if needed != named:
        missing, unused = sorted(needed - named), sorted(named - needed)
        raise ConfigError(
            "[shares] in the site file does not fit the plan",
            code="share-address-missing" if missing else "share-address-unused",
            expected=f"the custodians of {', '.join(sorted(needed)) or 'nobody'}: the"
            " other parties that hold a share of this node's state key",
            got=f"nothing of {', '.join(missing)}" if missing else ", ".join(unused),
            remedy="Correct [shares] in site.toml.",
        )
    return {name: parse_address(at) for name, at in place.site.shares.items()}


def _appraiser(place: Place, clock: FlooredClock) -> Appraiser:
    section = place.site.collateral
    root = read_root(section, wanted=place.plan.policy.server.root, at=place.at_site)
    return Appraiser(
        root=root,
        collateral=collateral_source(section, root, at=place.at_site, clock=clock),
        clock=clock,
    )
