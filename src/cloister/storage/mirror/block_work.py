"""The blocks of a state, shared between threads.

The ciphers and large copies let other threads run, so two work on two cores. Each has
memory of its own, one block's: there a block is sealed before the host can see it, and
there it is copied before it is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

from cloister.storage.mirror.array_layout import Block
from cloister.storage.mirror.block_cipher import TAG_BYTES


class BlockWork:
    """Does something with each block.

    Args:
        block_bytes: Size of a block, at most.
        threads: Those that help; None if nobody does.
        count: How many work at once, the caller included.

    Attributes:
        block_bytes: As given.
    """

    def __init__(
        self, block_bytes: int, *, threads: Executor | None, count: int
    ) -> None:
        self.block_bytes = block_bytes
        self._threads = threads
        size = block_bytes + TAG_BYTES
        helpers = max(1, count) if threads is not None else 1
        self._memory = [memoryview(bytearray(size)) for _ in range(helpers)]

    def each(
        self, blocks: Sequence[Block], act: Callable[[Block, memoryview], None]
    ) -> None:
        """Calls `act` with each block and a thread's own memory, in any order.

        Whatever `act` raises first is raised; blocks that nobody began are left then.
        """
        left = iter(tuple(blocks))
        failed: list[BaseException] = []

        def work(memory: memoryview) -> None:
            try:
                # One iterator for all: taking the next is one step of the interpreter.
                for block in left:
                    act(block, memory)
                    if failed:
                        return
            except BaseException as error:  # noqa: BLE001 - raised below, by the caller
                failed.append(error)

        own, *others = self._memory
        if self._threads is None or len(blocks) == 1:
            others = []
        helpers = [
            self._threads.submit(work, memory) for memory in others if self._threads
        ]
        work(own)
        # Their memory is used again, and the arrays are the caller's. Those that never
        # began are not waited for: the caller may be one of the pool.
        for helper in helpers:
            if not helper.cancel():
                helper.result()
        if failed:
            raise failed[0]
