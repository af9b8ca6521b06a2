"""Lets blows fall on a run, and measures how long it takes to recover from each."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from chaos_network import Host
from chaos_run import NODES, Run
from chaos_schedule import MOST_ROUNDS, Blow, Kind

# Whoever takes longer to come back has not recovered.
_RECOVERY_SECONDS = 150.0
# Rounds until one has been computed whole after a blow: the one under way may have all
# of its updates, and so may the next one by the time its end is heard here.
_ROUNDS_AGAIN = 2


class Blows:
    """What falls on one run.

    Args:
        run: The run.
        rounds: Of its plan.
        hosts: Where links can be cut.

    Attributes:
        fallen: How many blows fell, by kind.
        recoveries: Seconds from a blow until everybody is at work again and rounds go
            on, by kind; of a stop or a cut from its end on. Only of blows that had
            passed before the next one fell.
    """

    def __init__(self, run: Run, *, rounds: int, hosts: Mapping[str, Host]) -> None:
        self.fallen: Counter[Kind] = Counter()
        self.recoveries: dict[Kind, list[float]] = {}
        self._run = run
        self._rounds = rounds
        self._hosts = hosts
        # With each whether rounds stand still meanwhile.
        self._enduring: dict[asyncio.Task[None], bool] = {}

    async def fall(self, blows: Sequence[Blow]) -> None:
        """Lets them fall one after another, until they have or the run is over.

        Raises:
            RuntimeError: If the run does not recover from one.
        """
        for blow in blows:
            await self._until_due(blow)
            if self._run.over:
                break
            await self._strike(blow)
        # The run's end ends them as well.
        await asyncio.gather(*self._enduring)

    async def cease(self) -> None:
        """Ends the blows that still last."""
        for task in self._enduring:
            task.cancel()
        await asyncio.gather(*self._enduring, return_exceptions=True)

    async def _until_due(self, blow: Blow) -> None:
        run = self._run
        if blow.at_end:
            await run.until(lambda: run.over or run.round >= self._rounds)
        elif blow.after_rounds is not None:
            await self._recovered()
            wanted = run.round + blow.after_rounds
            await run.until(lambda: run.over or run.round >= wanted)
        # But not for so long that too few rounds are left for the others.
        most = run.round + MOST_ROUNDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(blow.delay_seconds):
                await run.until(lambda: run.over or run.round >= most)

    async def _recovered(self) -> None:
        """Waits for the nodes; rounds go on without a custodian, so they are not."""
        await asyncio.gather(*(it for it, still in self._enduring.items() if still))
        for task in [it for it in self._enduring if it.done()]:
            del self._enduring[task]
            task.result()

    async def _strike(self, blow: Blow) -> None:
        services = self._run.services
        hit = [blow.target] if blow.target else list(services)
        hit = [name for name in hit if not services[name].done]
        if not hit:
            return
        self.fallen[blow.kind] += 1
        # Counted before the blow: who is quick may be back before anybody looks.
        ups = {name: self._run.ups[name] + 1 for name in hit if blow.is_kill}
        if blow.is_kill:
            await asyncio.gather(*(services[it].send(signal.SIGKILL) for it in hit))
        task = asyncio.create_task(self._endure(blow, ups))
        self._enduring[task] = not set(hit).isdisjoint(NODES)

    async def _endure(self, blow: Blow, ups: Mapping[str, int]) -> None:
        run, fallen = self._run, self.fallen.total()
        wanted = min(run.round + _ROUNDS_AGAIN, self._rounds)
        async with self._lasting(blow):
            await asyncio.sleep(blow.held_seconds)
        began = time.monotonic()

        def recovered() -> bool:
            up = all(run.ups[it] >= ups[it] or run.services[it].done for it in ups)
            return run.over or (up and run.round >= wanted)

        await run.until(recovered, within=_RECOVERY_SECONDS)
        seconds = time.monotonic() - began
        if fallen == self.fallen.total():
            self.recoveries.setdefault(blow.kind, []).append(seconds)

    @asynccontextmanager
    async def _lasting(self, blow: Blow) -> AsyncIterator[None]:
        """Stops a process or cuts a link for as long as the body lasts."""
        if blow.kind == "stop":
            service = self._run.services[blow.target]
            await service.send(signal.SIGSTOP)
            try:
                yield
            finally:
                with contextlib.suppress(asyncio.CancelledError):
                    await service.send(signal.SIGCONT)
        elif blow.kind == "cut":
            host = self._hosts[blow.target]
            host.cut()
            try:
                yield
            finally:
                host.mend()
        else:
            yield
