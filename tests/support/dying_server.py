"""A server that dies at a chosen point of a round: nothing it does later takes effect.

Its storage and its log are the real ones; at the point they raise what no code of a
node catches, and go on doing so. What a real death leaves is left: the file of the
mirror, the log, the custodians' marks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import pytest
from numpy.typing import NDArray
from tests.support.running import until
from tests.support.whole_run import Scene, sources, task
from typing_extensions import override

from cloister.errors import CloisterError
from cloister.federation import audit_start, mirroring
from cloister.federation.audit_log import AuditLog
from cloister.federation.audit_records import Participant
from cloister.federation.published import Ending
from cloister.federation.server import Outcome
from cloister.storage.dsse import Envelope
from cloister.storage.mirror.parts_mirror import PartsMirror
from cloister.storage.mirror.parts_transaction import PartsTransaction
from cloister.storage.mirror.state_mirror import StateMirror
from cloister.storage.mirror.subject import Kept
from cloister.storage.model_vault import SealedModel

Point = Literal[
    "cohort chosen",
    "before the seal",
    "sealed",
    "before the record",
    "recorded",
    "before the commit",
    "committed",
    "model sealed",
]
"""In the order of a round whose state is durable before its model goes out."""


class Death(BaseException):
    """The server is dead."""


@dataclass(kw_only=True)
class Fate:
    """Where a server dies.

    Attributes:
        point: The point.
        round: Of this round.
        dead: Whether it has died.
    """

    point: Point
    round: int
    dead: bool = False

    def meet(self, point: Point, number: int) -> None:
        """Ends the server here, if it is the place or the server has ended before."""
        if (point, number) == (self.point, self.round):
            self.dead = True
        self.check()

    def check(self) -> None:
        """Lets a dead server do nothing."""
        if self.dead:
            raise Death


class Fates:
    """Makes the servers of a test die; one that has no fate lives.

    Args:
        patch: Puts storage and log into the server's code that know of fates.

    Attributes:
        now: The fate of the server that runs.
        heads: What parties had to say of the log after each death.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now: Fate | None = None
        self.heads: list[Envelope] = []
        fates = self

        class Mirror(StateMirror):
            sealing = 0

            @override
            def seal(
                self,
                completed: int,
                arrays: Mapping[str, NDArray[Any]],
                counters: Mapping[str, int] = MappingProxyType({}),
            ) -> Kept:
                fates.meet("before the seal", completed)
                kept = super().seal(completed, arrays, counters)
                self.sealing = completed
                fates.meet("sealed", completed)
                return kept

            @override
            def commit(self) -> None:
                fates.meet("before the commit", self.sealing)
                super().commit()
                fates.meet("committed", self.sealing)

        class Journal(PartsMirror):
            @override
            @contextmanager
            def transaction(self) -> Iterator[PartsTransaction]:
                with super().transaction() as transaction:
                    yield transaction
                fates.meet("cohort chosen", int(self.read("round")[0]))

        class Log(AuditLog):
            @override
            def round_completed(
                self,
                number: int,
                *,
                head: bytes,
                participants: tuple[Participant, ...],
                state: bytes | None,
            ) -> None:
                fates.meet("before the record", number)
                super().round_completed(
                    number, head=head, participants=participants, state=state
                )
                fates.meet("recorded", number)

            @override
            def model_sealed(
                self, sealed: SealedModel, *, rounds: int, ending: Ending
            ) -> None:
                fates.meet("model sealed", rounds)
                super().model_sealed(sealed, rounds=rounds, ending=ending)

            @override
            def run_failed(self, error: CloisterError, *, state: bytes | None) -> None:
                fates.check()
                super().run_failed(error, state=state)

        patch.setattr(mirroring, "StateMirror", Mirror)
        patch.setattr(mirroring, "PartsMirror", Journal)
        patch.setattr(audit_start, "AuditLog", Log)

    def meet(self, point: Point, number: int) -> None:
        """Ends the server that runs, if this is where it dies."""
        if self.now is not None:
            self.now.meet(point, number)

    def check(self) -> None:
        """Lets a dead server do nothing."""
        if self.now is not None:
            self.now.check()

    async def serve_until_dead(self, scene: Scene, fate: Fate) -> None:
        """Runs a server until it dies."""
        self.now = fate
        serving = asyncio.ensure_future(scene.serve(scene.node("aggregator"), task()))
        await until(lambda: fate.dead or serving.done())
        serving.cancel()
        (ended,) = await asyncio.gather(serving, return_exceptions=True)
        assert fate.dead, f"it ended with {ended!r} before round {fate.round}"
        self.now = None
        self.heads += scene.heads()

    async def run(
        self, scene: Scene, fates: Sequence[Fate], *, parties: Sequence[str]
    ) -> Outcome:
        """Has a run's servers die one after the other; the last one lives.

        Raises:
            ExceptionGroup: With the error of every node that failed.
        """
        data = sources(parties)
        working = [
            asyncio.ensure_future(scene.work(scene.node(name), task(), data[name]))
            for name in parties
        ]
        for fate in fates:
            await self.serve_until_dead(scene, fate)
        outcome, *others = await asyncio.gather(
            scene.serve(scene.node("aggregator"), task()),
            *working,
            return_exceptions=True,
        )
        failed = [it for it in (outcome, *others) if isinstance(it, Exception)]
        if failed:
            raise ExceptionGroup("nodes failed", failed)
        assert isinstance(outcome, Outcome)
        return outcome
