"""Machines in any state under a development root, which quote whenever asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from tests.support.federation_in_memory import START, Federation
from tests.support.plan_tree import measurement_of

from cloister.attestation.pck_extension import PLATFORM_INSTANCE_ID_BYTES, PPID_BYTES
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    met_level,
)
from cloister.attestation.platforms.simulated.issuing import Issuer, issue_pck
from cloister.attestation.platforms.simulated.profile import (
    COMPONENT_SVNS,
    MACHINE,
    Machine,
)
from cloister.attestation.platforms.simulated.quotes import (
    USUAL_FORMS,
    QuoteForm,
    raw_public_key,
)
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.platforms.simulated.scenario import SimulatedScenario
from cloister.attestation.reports import Tee
from cloister.attestation.tcb_status import LevelStatus

# A machine whose firmware is one version behind that of all others here.
BEHIND = replace(MACHINE, component_svns=(COMPONENT_SVNS[0] - 1, *COMPONENT_SVNS[1:]))


@dataclass(slots=True)
class OddPlatform:
    """Satisfies `Platform`: genuine under its root, in the state it was given.

    Attributes:
        scenario: The machine, what it runs, and the form of its quotes.
        root: Who issued its certificate.
        quotes: How many quotes it made.
    """

    scenario: SimulatedScenario
    root: SimulatedRoot
    quotes: int = 0
    _pck_key: ec.EllipticCurvePrivateKey = field(init=False, repr=False)
    _attestation_key: ec.EllipticCurvePrivateKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pck_key = ec.generate_private_key(ec.SECP256R1())
        self._attestation_key = ec.generate_private_key(ec.SECP256R1())

    @property
    def simulated(self) -> bool:
        return True

    @property
    def tee(self) -> Tee:
        return self.scenario.form.tee

    @property
    def name(self) -> str:
        return "odd"

    @property
    def ppid(self) -> bytes:
        """What its certificate names it."""
        public = raw_public_key(self._attestation_key)
        return hashlib.sha256(public).digest()[:PPID_BYTES]

    def quote(self, report_data: bytes) -> bytes:
        self.quotes += 1
        certificate = issue_pck(
            self._pck_key.public_key(),
            ca=self.root.ca,
            ppid=self.ppid,
            platform_instance_id=self.ppid[:PLATFORM_INSTANCE_ID_BYTES],
            at=self.scenario.at,
            machine=self.scenario.machine,
        )
        return self.scenario.quote(
            Issuer(certificate=certificate, key=self._pck_key),
            self._attestation_key,
            root=self.root,
            qe_id=self.ppid,
            report_data=report_data,
        )


def odd_platform(
    federation: Federation,
    role: str,
    tee: Tee,
    *,
    machine: Machine = MACHINE,
    form: QuoteForm | None = None,
    measurement: Measurement | None = None,
) -> OddPlatform:
    """Returns a machine under the federation's root; all else is as the plan wants."""
    scenario = SimulatedScenario(
        form=form or USUAL_FORMS[tee],
        at=START - timedelta(days=30),
        measurement=measurement or measurement_of(role),
        machine=machine,
    )
    return OddPlatform(scenario, federation.root)


def judging_behind(
    tee: Tee, status: LevelStatus, *, advisory_ids: tuple[str, ...] = ()
) -> SimulatedCollateral:
    """Returns collateral with a word for `BEHIND`; all others are up to date."""
    at = START - timedelta(hours=1)
    good = met_level(MACHINE, tee=tee, date=at)
    behind = met_level(
        BEHIND, tee=tee, date=at, status=status, advisory_ids=advisory_ids
    )
    return SimulatedCollateral(tee=tee, at=at, levels=(good, behind))
