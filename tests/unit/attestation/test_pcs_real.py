"""Intel's own collateral through the client, where a folder of it lies beside us.

Without that folder these tests check nothing and pass.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.attestation.pcs_servers import ChangingPccs, Clock, Pccs, saying
from tests.unit.attestation.real_quotes import judged_quotes

from cloister.attestation.collateral_source import collateral_for_evidence
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.pcs import CollateralService, PcsClient, PcsSettings
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.trust_root import intel_trust_root
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError

REFUSED = {"TCB_NOT_SUPPORTED", "Revoked"}


def test_every_real_quote_is_judged_alike_with_its_collateral_from_a_pccs(
    root: SimulatedRoot, tmp_path: Path
) -> None:
    clock = Clock(datetime(2026, 11, 20, tzinfo=UTC))
    pccs = Pccs(ChangingPccs(root, clock=clock), tmp_path)
    settings = PcsSettings(
        service=CollateralService(address=pccs.address), ca_file=pccs.ca_file
    )
    for number, real in enumerate(judged_quotes()):
        assert real.at is not None
        clock.now = real.at
        said = json.loads(real.collateral_json)
        pccs.answers.change = saying(said)
        evidence = parse_evidence(real.quote)
        with PcsClient(
            settings,
            root=intel_trust_root(),
            cache_directory=tmp_path / str(number),
            clock=clock,
        ) as client:
            collateral = collateral_for_evidence(
                evidence, source=client, root=intel_trust_root(), at=real.at
            )
        got = json.loads(collateral.to_json())
        assert got == {name: said[name] for name in got}, real
        refusal = pytest.raises(VerificationError, match="TCB")
        with refusal if real.status in REFUSED else nullcontext():
            claims = verify_evidence(
                evidence, collateral=collateral, root=intel_trust_root(), at=real.at
            )
            assert claims.tcb_status == real.status, real
    pccs.close()
