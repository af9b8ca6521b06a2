"""What the coordinator hands out: models as they are sent, and the end of training."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.federation.audit_records import Participant
from cloister.federation.messages import ModelHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model as it is sent: the same bytes to every worker."""

    header: ModelHeader
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How training ended.

    Attributes:
        model: Header of the final model.
        reports: Who reported on it, in plan order.
    """

    model: ModelHeader
    reports: tuple[Participant, ...]


@dataclass(slots=True)
class Traffic:
    """Payload bytes since the run began, as the server sees them."""

    received: int = 0
    sent: int = 0
