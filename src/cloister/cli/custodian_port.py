"""A custodian's port, also where the custodian before it is about to give it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from structlog.typing import FilteringBoundLogger

from cloister.custody.custodian import Custodian
from cloister.custody.serving import CustodianPort
from cloister.errors import PlatformError
from cloister.plan.site import Address

# One that lost its launcher ends within a moment; who starts the run again at once
# must not find its port taken.
_PREDECESSOR_SECONDS = 3.0
_LOOK_SECONDS = 0.1


@asynccontextmanager
async def open_port(
    custodian: Custodian, address: Address, *, log: FilteringBoundLogger
) -> AsyncIterator[None]:
    """Keeps a custodian's port open; waits some seconds for a predecessor's.

    Raises:
        PlatformError: If it cannot be opened (``port-unusable``).
    """
    clock = asyncio.get_running_loop().time
    until = clock() + _PREDECESSOR_SECONDS
    told = False
    async with AsyncExitStack() as opened:
        while True:
            try:
                port = CustodianPort(custodian, address, log=log)
                await opened.enter_async_context(port)
                break
            except PlatformError as error:
                if error.code != "port-unusable" or clock() >= until:
                    raise
            if not told:
                log.info("waiting-for-predecessor", address=str(address))
                told = True
            await asyncio.sleep(_LOOK_SECONDS)
        yield
