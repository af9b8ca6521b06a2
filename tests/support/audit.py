"""What a server's door recorded, in lists to look at, and a disk that takes no more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from typing_extensions import override

from cloister.errors import CloisterError, StorageError
from cloister.plan.plan import Role
from cloister.ratls.admission_table import Admitted
from cloister.ratls.testimony import Testimony


@dataclass(frozen=True, slots=True, kw_only=True)
class Admittal:
    """A recorded admission."""

    testimony: Testimony
    collateral: str | None
    admitted: Admitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A recorded refusal."""

    testimony: Testimony
    collateral: str | None
    role: Role
    party: str
    error: CloisterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """A recorded end of an admission."""

    admitted: Admitted
    error: CloisterError


class RecordedDoor:
    """Keeps every record in memory.

    Args:
        look: Called before each record is kept: what is already in effect then?

    Attributes:
        admitted: Who came in, in order.
        refused: Who was refused, likewise.
        withdrawn: Whose admission ended, likewise.
    """

    def __init__(self, look: Callable[[], object] = lambda: None) -> None:
        self._look = look
        self.admitted: list[Admittal] = []
        self.refused: list[Rejection] = []
        self.withdrawn: list[Withdrawal] = []

    def node_admitted(
        self, testimony: Testimony, collateral: str | None, *, admitted: Admitted
    ) -> None:
        self.write()
        self.admitted.append(
            Admittal(testimony=testimony, collateral=collateral, admitted=admitted)
        )

    def node_refused(
        self,
        testimony: Testimony,
        collateral: str | None,
        *,
        role: Role,
        party: str,
        error: CloisterError,
    ) -> None:
        self.write()
        self.refused.append(
            Rejection(
                testimony=testimony,
                collateral=collateral,
                role=role,
                party=party,
                error=error,
            )
        )

    def admission_withdrawn(self, admitted: Admitted, error: CloisterError) -> None:
        self.write()
        self.withdrawn.append(Withdrawal(admitted=admitted, error=error))

    def write(self) -> None:
        """Where a real one writes to a disk."""
        self._look()

    def refusals(self) -> list[tuple[str, str]]:
        """Returns party and code of every refusal."""
        return [(it.party, it.error.code) for it in self.refused]


class FullDisk(RecordedDoor):
    """Records nothing any more.

    Attributes:
        tried: How many records it did not take.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    @override
    def write(self) -> None:
        self.tried += 1
        raise StorageError(
            "/disk/audit.jsonl cannot be written",
            code="audit-unwritable",
            got="No space left on device",
        )
