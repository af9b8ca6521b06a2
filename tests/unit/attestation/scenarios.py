"""Simulated platforms in any state, judged by the verifier: what many tests need."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime

import pytest

from cloister.attestation.claims import Claims
from cloister.attestation.collateral import parse_collateral
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine
from cloister.attestation.platforms.simulated.quotes import QuoteForm, raw_signature
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.platforms.simulated.scenario import (
    SimulatedCase,
    SimulatedScenario,
)
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """One root and one time to judge cases by."""

    root: SimulatedRoot
    at: datetime
    measurement: Measurement

    def scenario(
        self,
        form: QuoteForm,
        *,
        machine: Machine = MACHINE,
        collateral: SimulatedCollateral | None = None,
    ) -> SimulatedScenario:
        return SimulatedScenario(
            form=form,
            at=self.at,
            measurement=self.measurement,
            machine=machine,
            collateral=collateral,
        )

    def claims(self, case: SimulatedCase, *, at: datetime | None = None) -> Claims:
        return verify_evidence(
            parse_evidence(case.quote),
            collateral=parse_collateral(json.dumps(case.collateral)),
            root=self.root.trust_root,
            at=self.at if at is None else at,
        )

    def refusal(
        self, case: SimulatedCase, *, at: datetime | None = None
    ) -> VerificationError:
        with pytest.raises(VerificationError) as refusal:
            self.claims(case, at=at)
        return refusal.value

    def refused(
        self, case: SimulatedCase, *, at: datetime | None = None
    ) -> tuple[str, int | None]:
        error = self.refusal(case, at=at)
        return error.code, error.step

    def with_collateral(self, case: SimulatedCase, **changed: str) -> SimulatedCase:
        """Replaces members; a changed document is signed again."""
        collateral = {**case.collateral, **changed}
        for name in ("tcb_info", "qe_identity"):
            if name in changed and f"{name}_signature" not in changed:
                signature = raw_signature(
                    self.root.signing.key, collateral[name].encode()
                )
                collateral[f"{name}_signature"] = signature.hex()
        return dataclasses.replace(case, collateral=collateral)
