"""Simulated platforms in any state, with the collateral that judges them, for tests.

A node never comes here: it loads one platform that is up to date. What is made here is
simulated from the root down, like everything in this room, and genuine under that root
exactly as far as the scenario says.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.pck_extension import PLATFORM_INSTANCE_ID_BYTES, PPID_BYTES
from cloister.attestation.platforms.measurement import Measurement
from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.platforms.simulated.issuing import Issuer, issue_pck
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine
from cloister.attestation.platforms.simulated.quotes import (
    QuoteForm,
    certification_data,
    qe_report_body,
    quote_header,
    raw_public_key,
    raw_signature,
    report_body,
    signed_quote,
)
from cloister.attestation.platforms.simulated.root import SimulatedRoot
from cloister.attestation.reports import REPORT_DATA_BYTES

Revocable = Literal["root", "ca", "signing", "pck"]

_QE_ID_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCase:
    """A simulated quote with its collateral, and the keys behind it.

    Attributes:
        quote: The quote.
        collateral: What would be said of its platform, in the common JSON shape.
        pck: The platform's certificate and key.
        attestation_key: What signed the quote.
    """

    quote: bytes = field(repr=False)
    collateral: dict[str, str] = field(repr=False)
    pck: Issuer = field(repr=False)
    attestation_key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedScenario:
    """One simulated platform in a given state.

    Attributes:
        form: Form of its quotes.
        at: Start of validity of its certificate and, by default, of the collateral.
        measurement: What it says runs.
        machine: Its security versions, attributes and enclaves.
        collateral: What is said of it; None for "up to date".
        revoked: Which certificates are on the lists beside those of `collateral`.
    """

    form: QuoteForm
    at: datetime
    measurement: Measurement
    machine: Machine = MACHINE
    collateral: SimulatedCollateral | None = None
    revoked: frozenset[Revocable] = frozenset()

    def build(
        self, root: SimulatedRoot, *, report_data: bytes = bytes(REPORT_DATA_BYTES)
    ) -> SimulatedCase:
        """Returns a quote of this platform, and its collateral, under `root`.

        Args:
            root: The development root.
            report_data: Exactly 64 bytes.
        """
        pck_key, attestation_key = _new_key(), _new_key()
        public_key = raw_public_key(attestation_key)
        ppid = hashlib.sha256(public_key).digest()[:PPID_BYTES]
        certificate = issue_pck(
            pck_key.public_key(),
            ca=root.ca,
            ppid=ppid,
            platform_instance_id=ppid[:PLATFORM_INSTANCE_ID_BYTES],
            at=self.at,
            machine=self.machine,
        )
        pck = Issuer(certificate=certificate, key=pck_key)
        return SimulatedCase(
            quote=self.quote(
                pck, attestation_key, root=root, qe_id=ppid, report_data=report_data
            ),
            collateral=self._judged(root, pck).signed_by(root),
            pck=pck,
            attestation_key=attestation_key,
        )

    def quote(
        self,
        pck: Issuer,
        attestation_key: ec.EllipticCurvePrivateKey,
        *,
        root: SimulatedRoot,
        qe_id: bytes,
        report_data: bytes,
    ) -> bytes:
        """Returns a quote that these keys sign, whoever's they are."""
        form, machine = self.form, self.machine
        qe_report = qe_report_body(
            tee=form.tee,
            attestation_key=raw_public_key(attestation_key),
            machine=machine,
        )
        header = quote_header(form=form, qe_id=qe_id[:_QE_ID_BYTES], machine=machine)
        body = report_body(
            form=form,
            measurement=self.measurement,
            report_data=report_data,
            machine=machine,
        )
        return signed_quote(
            header + body,
            key=attestation_key,
            certification=certification_data(
                form=form,
                qe_report=qe_report,
                qe_signature=raw_signature(pck.key, qe_report),
                pck_chain_pem=pck.pem + root.ca.pem + root.root.pem,
            ),
        )

    def _judged(self, root: SimulatedRoot, pck: Issuer) -> SimulatedCollateral:
        collateral = self.collateral or SimulatedCollateral(
            tee=self.form.tee, at=self.at, machine=self.machine
        )
        by_root: dict[Revocable, Issuer] = {
            "root": root.root,
            "ca": root.ca,
            "signing": root.signing,
        }
        serials = tuple(
            issuer.certificate.serial_number
            for name, issuer in by_root.items()
            if name in self.revoked
        )
        leaf = (pck.certificate.serial_number,) if "pck" in self.revoked else ()
        return dataclasses.replace(
            collateral,
            revoked_by_root=(*collateral.revoked_by_root, *serials),
            revoked_by_ca=(*collateral.revoked_by_ca, *leaf),
        )


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
