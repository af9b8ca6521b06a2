"""Whatever is changed in quote or collateral, by one bit or many, is refused.

Changed collateral is verified against an honest quote, and a changed quote with honest
collateral; what comes out is the same claims as before, or one of our errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.claims import Claims
from cloister.attestation.collateral import (
    COLLATERAL_FIELDS,
    Collateral,
    parse_collateral,
)
from cloister.attestation.evidence import Evidence, parse_evidence
from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.platforms.simulated.quotes import (
    SGX_V3,
    SGX_V5,
    TD_10_V4,
    TD_15_V5,
    QuoteForm,
)
from cloister.attestation.trust_root import TrustRoot
from cloister.attestation.verify import verify_evidence
from cloister.errors import VerificationError

FORMS = (SGX_V3, SGX_V5, TD_10_V4, TD_15_V5)
IDS = ("sgx v3", "sgx v5", "td 1.0 v4", "td 1.5 v5")


class Honest:
    """A platform up to date, whose quote or collateral is then changed."""

    def __init__(self, judge: Judge, form: QuoteForm) -> None:
        # With entries on both lists, so that there is more to change.
        content = SimulatedCollateral(
            tee=form.tee, at=judge.at, revoked_by_root=(5,), revoked_by_ca=(6, 7)
        )
        case = judge.scenario(form, collateral=content).build(judge.root)
        self.quote = case.quote
        self.shape: Mapping[str, str] = case.collateral
        self.evidence: Evidence = parse_evidence(case.quote)
        self.collateral: Collateral = parse_collateral(json.dumps(case.collateral))
        self._root: TrustRoot = judge.root.trust_root
        self._at = judge.at

    def verify_quote(self, quote: bytes) -> Claims:
        return self._verify(parse_evidence(quote), self.collateral)

    def check_changed_collateral(self, text: bytes | str) -> None:
        """Refused, or another spelling of exactly the same collateral."""
        try:
            collateral = parse_collateral(text)
        except VerificationError:
            return
        if collateral != self.collateral:
            with pytest.raises(VerificationError):
                self._verify(self.evidence, collateral)

    def _verify(self, evidence: Evidence, collateral: Collateral) -> Claims:
        return verify_evidence(
            evidence, collateral=collateral, root=self._root, at=self._at
        )


@pytest.fixture(params=FORMS, ids=IDS)
def honest(request: pytest.FixtureRequest, judge: Judge) -> Honest:
    made = Honest(judge, request.param)
    assert made.verify_quote(made.quote).tcb_status == "UpToDate"
    return made


def check_flipped_quote(honest: Honest, *, step: int) -> None:
    for position in range(0, len(honest.quote), step):
        for bit in (position % 8, (position + 5) % 8):
            quote = bytearray(honest.quote)
            quote[position] ^= 1 << bit
            with pytest.raises(VerificationError):
                honest.verify_quote(bytes(quote))


def check_flipped_collateral(honest: Honest, *, step: int) -> None:
    text = json.dumps(dict(honest.shape)).encode()
    for position in range(0, len(text), step):
        changed = bytearray(text)
        changed[position] ^= 1 << position % 8
        honest.check_changed_collateral(bytes(changed))


def check_flipped_lists(honest: Honest, *, step: int) -> None:
    """In the lists every bit of every byte, not of its digits."""
    for name in ("root_ca_crl", "pck_crl", "tcb_info_signature"):
        octets = bytes.fromhex(honest.shape[name])
        for position in range(0, len(octets), step):
            changed = bytearray(octets)
            changed[position] ^= 1 << position % 8
            honest.check_changed_collateral(
                json.dumps({**honest.shape, name: changed.hex()})
            )


def check_truncated_collateral(honest: Honest, *, step: int) -> None:
    for name in COLLATERAL_FIELDS:
        content = honest.shape[name]
        for length in range(0, len(content), step):
            shape = {**honest.shape, name: content[:length]}
            # A line break at the end of PEM is not a part of any certificate.
            if content[:length] != content.rstrip("\n"):
                honest.check_changed_collateral(json.dumps(shape))


def check_edited(honest: Honest, *, cases: int, seed: int) -> None:
    """Cuts, copies and random bytes anywhere, in quote and collateral."""
    rng = np.random.Generator(np.random.PCG64(seed))
    text = json.dumps(dict(honest.shape)).encode()
    for _ in range(cases):
        quote = _edited(honest.quote, rng)
        if quote.rstrip(b"\0") != honest.quote.rstrip(b"\0"):
            with pytest.raises(VerificationError):
                honest.verify_quote(quote)
        honest.check_changed_collateral(_edited(text, rng))


def _edited(data: bytes, rng: np.random.Generator) -> bytes:
    for _ in range(rng.integers(1, 4)):
        start, source = rng.integers(0, len(data), size=2).tolist()
        removed, length = rng.integers(0, [60, 40]).tolist()
        inserted = (
            rng.bytes(length) if rng.random() < 0.5 else data[source : source + length]
        )
        data = data[:start] + inserted + data[start + removed :]
    return data


def test_one_flipped_bit_of_a_quote_is_refused(honest: Honest) -> None:
    check_flipped_quote(honest, step=13)


def test_one_flipped_bit_of_collateral_is_refused(honest: Honest) -> None:
    check_flipped_collateral(honest, step=19)
    check_flipped_lists(honest, step=5)


def test_truncated_collateral_is_refused(honest: Honest) -> None:
    check_truncated_collateral(honest, step=13)


def test_edited_quotes_and_collateral_are_refused_and_nothing_else(
    honest: Honest,
) -> None:
    check_edited(honest, cases=150, seed=20_261_120)


@pytest.mark.long
def test_one_flipped_bit_in_every_byte_of_collateral_is_refused(
    honest: Honest,
) -> None:
    check_flipped_quote(honest, step=2)
    check_flipped_collateral(honest, step=1)
    check_flipped_lists(honest, step=1)


@pytest.mark.long
def test_every_truncation_of_quote_and_collateral_is_refused(honest: Honest) -> None:
    check_truncated_collateral(honest, step=1)
    for length in range(len(honest.quote)):
        with pytest.raises(VerificationError):
            honest.verify_quote(honest.quote[:length])


@pytest.mark.long
def test_thousands_of_edits_are_refused_and_nothing_else(honest: Honest) -> None:
    check_edited(honest, cases=5_000, seed=7)
