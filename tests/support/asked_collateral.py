"""A source of collateral that notes what it is asked for."""

from __future__ import annotations

from dataclasses import replace

from tests.support.federation_in_memory import Federation, HandClock
from typing_extensions import override

from cloister.attestation.collateral import Collateral
from cloister.attestation.collateral_source import CollateralFiles, PckCa
from cloister.attestation.reports import Tee
from cloister.ratls.appraiser import Appraiser
from cloister.ratls.node import Node


class AskedFiles(CollateralFiles):
    """Collateral in files, as a federation in memory has it.

    Attributes:
        asked: Which kinds of environment it was asked about, in order.
    """

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation.root.directory)
        self.asked: list[Tee] = []

    @override
    def collateral_for(self, *, tee: Tee, fmspc: str, ca: PckCa) -> Collateral:
        self.asked.append(tee)
        return super().collateral_for(tee=tee, fmspc=fmspc, ca=ca)


def asking(federation: Federation) -> tuple[Appraiser, AskedFiles]:
    """Returns an appraiser and the source that it asks."""
    source = AskedFiles(federation)
    appraiser = federation.appraiser(HandClock().floored())
    return replace(appraiser, collateral=source), source


def asking_node(federation: Federation, party: str) -> tuple[Node, AskedFiles]:
    """Returns a node and the source that it asks."""
    appraiser, source = asking(federation)
    return replace(federation.node(party), appraiser=appraiser), source
