"""One run of a deployment, from its processes' first start to the server's end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from chaos_network import Host
from chaos_scene import SERVER, SERVICES, WORKERS, Deployment
from chaos_services import Event, Failure, Service

NODES = (SERVER, *WORKERS)
# How each shows that it is at work; custodians in another way than nodes.
_UP = dict.fromkeys(WORKERS, "server-attested") | {SERVER: "listening"}
_CUSTODIAN_UP = "custodian-listening"
# When the server has ended; a worker that was just killed finds nobody.
_FAREWELL_SECONDS = 10.0


class Run:
    """A run under way; made by `started`.

    Args:
        deployment: What runs.
        hosts: Whose process is in which network namespace; empty for none.

    Attributes:
        services: Its processes, by name.
        round: The last round that the server said it completed.
        ups: How often each service said that it is at work.
    """

    def __init__(self, deployment: Deployment, hosts: Mapping[str, Host]) -> None:
        self.services: dict[str, Service] = {}
        for name in SERVICES:
            prefix = hosts[name].prefix if hosts else ()
            command = [*prefix, *deployment.command(name)]
            self.services[name] = Service(name, command, on_event=self._notice)
        self.round = 0
        self.ups: Counter[str] = Counter()
        self._completed: Counter[int] = Counter()
        self._heard = asyncio.Event()
        self._keeping: list[asyncio.Task[None]] = []

    @property
    def over(self) -> bool:
        """Whether the server has done its work."""
        return self.services[SERVER].done

    @property
    def restarts(self) -> int:
        """How many processes were started again."""
        return sum(it.starts - 1 for it in self.services.values())

    @property
    def failures(self) -> list[Failure]:
        """Ends with an error; there should be none."""
        return [failure for it in self.services.values() for failure in it.failures]

    @property
    def rounds_again(self) -> int:
        """How many rounds were done again by a server after its predecessor."""
        return sum(times - 1 for times in self._completed.values())

    async def until(
        self, holds: Callable[[], object], *, within: float | None = None
    ) -> None:
        """Waits until something holds; it is looked at whenever anybody says anything.

        Args:
            holds: What is waited for.
            within: Seconds to wait.

        Raises:
            RuntimeError: If it takes longer, or a service is given up.
        """
        try:
            async with asyncio.timeout(within):
                while not holds():
                    await self._hear()
        except TimeoutError:
            raise RuntimeError(f"not in {within} s: {self._standing()}") from None

    async def finish(self) -> float:
        """Returns how long the server took; waits for it and for the workers' end."""
        began = time.monotonic()
        await self.until(lambda: self.over)
        seconds = time.monotonic() - began
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                await self.until(lambda: all(self.services[it].done for it in NODES))
        for group in (WORKERS, SERVICES):
            await asyncio.gather(*(self.services[name].stop() for name in group))
        return seconds

    def begin(self) -> None:
        """Starts everybody."""
        for service in self.services.values():
            self._keeping.append(asyncio.create_task(service.keep()))

    async def end(self) -> None:
        """Ends whatever still runs, for good."""
        for service in self.services.values():
            service.kill()
        await asyncio.gather(*self._keeping, return_exceptions=True)

    async def _hear(self) -> None:
        listening = asyncio.create_task(self._heard.wait())
        running = [task for task in self._keeping if not task.done()]
        try:
            await asyncio.wait(
                [listening, *running], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            listening.cancel()
        for task in self._keeping:
            if task.done():
                task.result()

    def _notice(self, name: str, event: Event) -> None:
        kind = event.get("event")
        if name == SERVER and kind == "round":
            self.round = max(self.round, int(event["round"]))
            self._completed[int(event["round"])] += 1
        elif kind == _UP.get(name, _CUSTODIAN_UP):
            self.ups[name] += 1
        self._heard.set()
        self._heard = asyncio.Event()

    def _standing(self) -> str:
        starts = {name: it.starts for name, it in self.services.items()}
        return f"round {self.round}, starts {starts}, failures {self.failures}"


@asynccontextmanager
async def started(
    deployment: Deployment, hosts: Mapping[str, Host] | None = None
) -> AsyncIterator[Run]:
    """Lends a run whose processes are being started; ends them, whatever happens."""
    run = Run(deployment, hosts or {})
    run.begin()
    try:
        yield run
    finally:
        await asyncio.shield(run.end())
