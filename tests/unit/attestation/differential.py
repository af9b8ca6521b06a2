"""Random platforms, and the one table of what two verifiers may disagree about.

The oracle is dcap-qvl, an independent implementation in Rust. Where it is stricter it
appraises (debug, SEPT_VE_DISABLE and the like are the policy's business here) or reads
fewer forms; where it is laxer, attestation.md or Intel's own library say why we refuse.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

import dcap_qvl
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.der import OCTET_STRING, encode
from cloister.attestation.pck_extension import SGX_EXTENSION_OID
from cloister.attestation.platforms.simulated import issuing
from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    enclave_level,
    met_level,
)
from cloister.attestation.platforms.simulated.issuing import Issuer
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine
from cloister.attestation.platforms.simulated.quotes import (
    QUOTE_FORMS,
    SGX_V3,
    SGX_V4,
    TD_10_V4,
    TD_10_V5,
    TD_15_V5,
    QuoteForm,
    raw_signature,
)
from cloister.attestation.platforms.simulated.scenario import (
    Revocable,
    SimulatedCase,
    SimulatedScenario,
)
from cloister.attestation.reports import (
    SGX_FLAG_DEBUG,
    TD_FLAG_DEBUG,
    TD_FLAG_MIGRATABLE,
    TD_FLAG_SEPT_VE_DISABLE,
)
from cloister.attestation.tcb_info import EnclaveLevel, PlatformLevel
from cloister.attestation.tcb_status import EnclaveStatus, LevelStatus
from cloister.errors import VerificationError

LEVEL_STATUSES: tuple[LevelStatus, ...] = get_args(LevelStatus)
ENCLAVE_STATUSES: tuple[EnclaveStatus, ...] = get_args(EnclaveStatus)
FINE = {
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
}
SVNS_IN_PLAY = 3
# A machine that nothing of the oracle's appraisal refuses.
TAME = {
    "enclave_flags": MACHINE.enclave_flags,
    "td_flags": MACHINE.td_flags,
    "mrservicetd": MACHINE.mrservicetd,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verifier said.

    Attributes:
        status: The TCB status, or "" for a refusal.
        advisory_ids: Sorted.
        refusal: Code or prose of a refusal.
    """

    status: str = ""
    advisory_ids: tuple[str, ...] = ()
    refusal: str = ""

    def agrees_with(self, other: Outcome) -> bool:
        """Refusals agree whatever their words."""
        return (self.status, self.advisory_ids) == (other.status, other.advisory_ids)


def ours(judge: Judge, case: SimulatedCase, *, at: datetime) -> Outcome:
    try:
        claims = judge.claims(case, at=at)
    except VerificationError as error:
        return Outcome(refusal=error.code)
    return Outcome(status=claims.tcb_status, advisory_ids=claims.advisory_ids)


def theirs(judge: Judge, case: SimulatedCase, *, at: datetime) -> Outcome:
    try:
        report = dcap_qvl.verify_with_root_ca(
            case.quote,
            dcap_qvl.QuoteCollateralV3.from_json(json.dumps(case.collateral)),
            judge.root.trust_root.der,
            int(at.timestamp()),
        )
    except ValueError as error:
        return Outcome(refusal=str(error))
    return Outcome(
        status=report.status, advisory_ids=tuple(sorted(report.advisory_ids))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """A random platform with the time to verify it for."""

    scenario: SimulatedScenario
    case: SimulatedCase
    at: datetime

    def twin(self, judge: Judge, form: QuoteForm, **machine: object) -> SimulatedCase:
        """Returns the same platform with another form of quote."""
        changed = dataclasses.replace(
            self.scenario.machine,
            **machine,  # type: ignore[arg-type]
        )
        return dataclasses.replace(self.scenario, form=form, machine=changed).build(
            judge.root
        )


def generated(judge: Judge, rng: np.random.Generator) -> Generated:
    """Returns a random platform whose levels lie close around it."""
    form = QUOTE_FORMS[rng.integers(len(QUOTE_FORMS))]
    machine = _machine(rng)
    described = machine
    if _rarely(rng, 0.02):
        described = dataclasses.replace(described, fmspc=b"\xff" * 6)
    if _rarely(rng, 0.02):
        described = dataclasses.replace(described, pce_id=b"\0\1")
    levels = {
        (level.sgx_svns, level.pce_svn, level.tdx_svns): level
        for level in (
            _level(rng, judge, tdx=form.tee == "tdx", lowest=place == 0)
            for place in range(rng.integers(1, 6))
        )
    }
    majors = [major for major in (1, 2, 3) if not _rarely(rng, 0.05)]
    collateral = SimulatedCollateral(
        tee=form.tee,
        at=judge.at,
        machine=described,
        levels=tuple(levels.values()),
        module_levels={major: _enclave_levels(rng, judge, top=5) for major in majors},
        qe_levels=_enclave_levels(rng, judge, top=7),
    )
    scenario = dataclasses.replace(
        judge.scenario(form, machine=machine, collateral=collateral),
        revoked=_revoked(rng),
    )
    days = int(rng.choice([-1, 40])) if _rarely(rng, 0.03) else 5
    return Generated(
        scenario=scenario,
        case=scenario.build(judge.root),
        at=judge.at + timedelta(days=days),
    )


def explained(
    judge: Judge, platform: Generated, mine: Outcome, oracle: Outcome
) -> str | None:
    """Returns which row of the table allows this disagreement; None if none does."""
    form = platform.scenario.form
    if oracle.refusal and not mine.refusal:
        # Without what it appraises or cannot read, it says exactly what we say.
        tame = theirs(
            judge,
            platform.twin(judge, SGX_V3 if form.tee == "sgx" else form, **TAME),
            at=platform.at,
        )
        appraised = [
            row.name
            for row in DIVERGENCES
            if row.theirs in oracle.refusal and row.applies(platform.scenario.machine)
        ]
        if appraised and mine.agrees_with(tame):
            return appraised[0]
        if appraised:
            oracle = tame
    if mine.refusal == "tcb-info-pceid":
        return "TCB info for another PCEID"
    if form == TD_15_V5 and _is_relaunch_difference(judge, platform, mine, oracle):
        return "when a relaunch of the TD is advised"
    return None


def _is_relaunch_difference(
    judge: Judge, platform: Generated, mine: Outcome, oracle: Outcome
) -> bool:
    """Whether the oracle's rule for TD 1.5 explains its answer, and Intel's ours.

    It judges the TD twice, as launched and as a TD launched now would be; Intel's
    library compares a few SVNs with the newest levels.
    """
    now = platform.scenario.machine.tee_tcb_svn2
    launched = theirs(judge, platform.twin(judge, TD_10_V5, **TAME), at=platform.at)
    current = theirs(
        judge, platform.twin(judge, TD_10_V5, tee_tcb_svn=now, **TAME), at=platform.at
    )
    advised = Outcome(
        status="TDRelaunchAdvised"
        + (
            "ConfigurationNeeded"
            if "Configuration" in launched.status + current.status
            else ""
        ),
        advisory_ids=launched.advisory_ids,
    )
    if launched.refusal or current.refusal:
        expected = Outcome()
    elif launched.status.startswith("OutOfDate") and current.status in FINE:
        expected = advised
    else:
        expected = launched
    possible = mine.agrees_with(launched) or (
        mine.status.startswith("TDRelaunchAdvised")
        and launched.status.startswith("OutOfDate")
        and mine.advisory_ids == launched.advisory_ids
    )
    unknown = mine.refusal == "tdx-module-unknown"
    return oracle.agrees_with(expected) and (possible or unknown)


def _machine(rng: np.random.Generator) -> Machine:
    flags = TD_FLAG_SEPT_VE_DISABLE
    if _rarely(rng, 0.02):
        flags |= TD_FLAG_DEBUG
    if _rarely(rng, 0.02):
        flags &= ~TD_FLAG_SEPT_VE_DISABLE
    if _rarely(rng, 0.02):
        flags |= TD_FLAG_MIGRATABLE
    return Machine(
        component_svns=_svns(rng, high=4),
        pce_svn=int(rng.integers(10, 14)),
        platform_instance=not _rarely(rng, 0.2),
        enclave_flags=MACHINE.enclave_flags
        | (SGX_FLAG_DEBUG if _rarely(rng, 0.01) else 0),
        td_flags=flags,
        tee_tcb_svn=_tee_tcb_svn(rng),
        # Mostly newer than what the TD was launched on.
        tee_tcb_svn2=_tee_tcb_svn(rng)
        if _rarely(rng, 0.4)
        else bytes([5, int(rng.integers(1, 4)), 3]) + bytes(13),
        mrservicetd=bytes([1] * 48) if _rarely(rng, 0.01) else bytes(48),
        seam_attributes=bytes([1] + [0] * 7) if _rarely(rng, 0.01) else bytes(8),
        mrsignerseam=bytes([1] * 48) if _rarely(rng, 0.01) else bytes(48),
        qe_svn=int(rng.integers(2, 9)),
        qe_signer=bytes(32) if _rarely(rng, 0.01) else MACHINE.qe_signer,
        qe_prod_id=9 if _rarely(rng, 0.01) else None,
        qe_misc_select=1 if _rarely(rng, 0.01) else 0,
    )


def _level(
    rng: np.random.Generator, judge: Judge, *, tdx: bool, lowest: bool
) -> PlatformLevel:
    if lowest and not _rarely(rng, 0.2):
        # One that every machine meets, so that few are at no level at all.
        low = Machine(
            component_svns=(0,) * 16,
            pce_svn=int(rng.integers(0, 9)),
            tee_tcb_svn=bytes(16),
        )
    else:
        low = Machine(
            component_svns=_svns(rng, high=3),
            pce_svn=int(rng.integers(9, 13)),
            tee_tcb_svn=bytes([int(rng.integers(0, 4)), 0, int(rng.integers(0, 3))])
            + bytes(13),
        )
    return met_level(
        low,
        tee="tdx" if tdx else "sgx",
        date=judge.at - timedelta(days=int(rng.integers(0, 1000))),
        # Revoked is the last of them, and ends most of what could be compared.
        status=LEVEL_STATUSES[
            rng.integers(len(LEVEL_STATUSES) - (0 if _rarely(rng, 0.2) else 1))
        ],
        advisory_ids=_advisories(rng),
    )


def _enclave_levels(
    rng: np.random.Generator, judge: Judge, *, top: int
) -> tuple[EnclaveLevel, ...]:
    svns = sorted({1, *rng.integers(1, top, size=3).tolist()}, reverse=True)
    if _rarely(rng, 0.2):
        svns = svns[:-1] or svns
    return tuple(
        enclave_level(
            svn,
            date=judge.at - timedelta(days=int(rng.integers(0, 1000))),
            # Mostly as Intel has it: the highest is current.
            status="UpToDate"
            if not place and not _rarely(rng, 0.3)
            else ENCLAVE_STATUSES[rng.choice(3, p=[0.2, 0.7, 0.1])],
            advisory_ids=_advisories(rng),
        )
        for place, svn in enumerate(svns)
    )


def _svns(rng: np.random.Generator, *, high: int) -> tuple[int, ...]:
    varied = (int(svn) for svn in rng.integers(0, high, size=SVNS_IN_PLAY))
    return (*varied, *MACHINE.component_svns[SVNS_IN_PLAY:])


def _tee_tcb_svn(rng: np.random.Generator) -> bytes:
    svn, major, loader = rng.integers(0, [6, 4, 4])
    return bytes([int(svn), int(major), int(loader)]) + bytes(13)


def _advisories(rng: np.random.Generator) -> tuple[str, ...]:
    chosen = rng.integers(0, 20, size=rng.integers(0, 4))
    return tuple(dict.fromkeys(f"INTEL-SA-{number:05d}" for number in chosen.tolist()))


def _revoked(rng: np.random.Generator) -> frozenset[Revocable]:
    names: tuple[Revocable, ...] = get_args(Revocable)
    return frozenset(name for name in names if _rarely(rng, 0.01))


def _rarely(rng: np.random.Generator, share: float) -> bool:
    return bool(rng.random() < share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A row of the table: what the two may disagree about, and how.

    Attributes:
        name: What it is.
        case: Shows it.
        ours: Our status, or the code of our refusal.
        theirs: Their status, or words of their refusal.
        applies: Which random platforms it can explain.
    """

    name: str
    case: Callable[[Judge], SimulatedCase]
    ours: str
    theirs: str
    applies: Callable[[Machine], bool] = lambda _: False


def _plain(form: QuoteForm, **machine: object) -> Callable[[Judge], SimulatedCase]:
    changed = dataclasses.replace(MACHINE, **machine)  # type: ignore[arg-type]
    return lambda judge: judge.scenario(form, machine=changed).build(judge.root)


def _described(
    form: QuoteForm, **collateral: object
) -> Callable[[Judge], SimulatedCase]:
    def case(judge: Judge) -> SimulatedCase:
        content = SimulatedCollateral(tee=form.tee, at=judge.at)
        content = dataclasses.replace(content, **collateral)  # type: ignore[arg-type]
        return judge.scenario(form, collateral=content).build(judge.root)

    return case


def _relaunch(
    svn: int, *levels: tuple[int, EnclaveStatus]
) -> Callable[[Judge], SimulatedCase]:
    """A TD launched on module 5, with another one loaded now."""

    def case(judge: Judge) -> SimulatedCase:
        machine = Machine(tee_tcb_svn2=bytes([svn, 1, 2]) + bytes(13))
        content = SimulatedCollateral(
            tee="tdx",
            at=judge.at,
            machine=machine,
            module_levels={
                1: tuple(
                    enclave_level(least, date=judge.at, status=status)
                    for least, status in levels
                )
            },
        )
        scenario = judge.scenario(TD_15_V5, machine=machine, collateral=content)
        return scenario.build(judge.root)

    return case


def _signed_by_another(
    signer: Callable[[Judge, SimulatedCase], tuple[Issuer, bytes]],
) -> Callable[[Judge], SimulatedCase]:
    def case(judge: Judge) -> SimulatedCase:
        made = judge.scenario(SGX_V3).build(judge.root)
        issuer, chain = signer(judge, made)
        changed = dict(made.collateral)
        for name in ("tcb_info", "qe_identity"):
            signature = raw_signature(issuer.key, changed[name].encode())
            changed[f"{name}_signature"] = signature.hex()
            changed[f"{name}_issuer_chain"] = chain.decode()
        return dataclasses.replace(made, collateral=changed)

    return case


def end_entity(judge: Judge, *, name: str, issuer: Issuer) -> Issuer:
    """Issues an ordinary certificate under any authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = issuing._builder(
        issuing._name(name), key.public_key(), at=judge.at, life=timedelta(days=90)
    )
    certificate = issuing._issue(
        issuing._end_entity(builder), issuer, "https://simulated.invalid/x.crl"
    )
    return Issuer(certificate=certificate, key=key)


def _other_end_entity(judge: Judge, _: SimulatedCase) -> tuple[Issuer, bytes]:
    signer = end_entity(judge, name="x", issuer=judge.root.root)
    return signer, signer.pem + judge.root.root.pem


def _pck_by_root(judge: Judge) -> SimulatedCase:
    """A PCK that the root has issued itself, in the place under itself."""
    scenario = judge.scenario(SGX_V3)
    by_root = dataclasses.replace(judge.root, ca=judge.root.root)
    made = scenario.build(by_root)
    honest = scenario.build(judge.root)
    return dataclasses.replace(made, collateral=honest.collateral)


def _with_quote(
    form: QuoteForm, change: Callable[[bytes], bytes]
) -> Callable[[Judge], SimulatedCase]:
    def case(judge: Judge) -> SimulatedCase:
        made = judge.scenario(form).build(judge.root)
        return dataclasses.replace(made, quote=change(made.quote))

    return case


def _outer_type(quote: bytes) -> bytes:
    """Certification data of another type around the QE report."""
    at = 48 + 584 + 4 + 64 + 64
    return quote[:at] + b"\5\0" + quote[at + 2 :]


def _contradicting_pck(judge: Judge) -> SimulatedCase:
    """A PCK whose CPUSVN says more than its components do."""
    cpu_svn = encode(OCTET_STRING, bytes(MACHINE.component_svns))
    inflated = encode(OCTET_STRING, bytes([255, *MACHINE.component_svns[1:]]))
    key = ec.generate_private_key(ec.SECP256R1())
    extension = issuing.encode_pck_extension(
        ppid=bytes(16), platform_instance_id=bytes(16)
    ).replace(cpu_svn, inflated)
    builder = issuing._end_entity(
        issuing._builder(
            issuing._name(issuing.PCK_NAME),
            key.public_key(),
            at=judge.at,
            life=timedelta(days=90),
        )
    ).add_extension(
        x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_EXTENSION_OID), extension),
        critical=False,
    )
    certificate = issuing._issue(
        builder, judge.root.ca, "https://simulated.invalid/x.crl"
    )
    pck = Issuer(certificate=certificate, key=key)
    scenario = judge.scenario(SGX_V3)
    made = scenario.build(judge.root)
    quote = scenario.quote(
        pck,
        made.attestation_key,
        root=judge.root,
        qe_id=bytes(16),
        report_data=bytes(64),
    )
    return dataclasses.replace(made, quote=quote)


DIVERGENCES = (
    # It reads fewer forms.
    Divergence(
        name="an SGX report in version 4 or 5",
        case=_plain(SGX_V4),
        ours="UpToDate",
        theirs="SGX TEE quote must have version 3",
        applies=lambda _: True,
    ),
    # It appraises: here all of that is the policy's.
    Divergence(
        name="a debug enclave",
        case=_plain(SGX_V3, enclave_flags=MACHINE.enclave_flags | SGX_FLAG_DEBUG),
        ours="UpToDate",
        theirs="Debug mode is enabled",
        applies=lambda machine: bool(machine.enclave_flags & SGX_FLAG_DEBUG),
    ),
    Divergence(
        name="a debug TD",
        case=_plain(TD_10_V4, td_flags=MACHINE.td_flags | TD_FLAG_DEBUG),
        ours="UpToDate",
        theirs="Debug mode is enabled",
        applies=lambda machine: bool(machine.td_flags & TD_FLAG_DEBUG),
    ),
    Divergence(
        name="a TD with another bit of the untrusted group",
        case=_plain(TD_10_V4, td_flags=MACHINE.td_flags | 0x80),
        ours="UpToDate",
        theirs="Reserved bits in TD attributes are set",
    ),
    Divergence(
        name="a TD without SEPT_VE_DISABLE",
        case=_plain(TD_10_V4, td_flags=0),
        ours="UpToDate",
        theirs="SEPT_VE_DISABLE is not enabled",
        applies=lambda machine: not machine.td_flags & TD_FLAG_SEPT_VE_DISABLE,
    ),
    Divergence(
        name="a TD that may migrate",
        case=_plain(TD_10_V4, td_flags=MACHINE.td_flags | TD_FLAG_MIGRATABLE),
        ours="UpToDate",
        theirs="TD migration is enabled",
        applies=lambda machine: bool(machine.td_flags & TD_FLAG_MIGRATABLE),
    ),
    Divergence(
        name="a TD with a service TD",
        case=_plain(TD_15_V5, mrservicetd=bytes([1] * 48)),
        ours="UpToDate",
        theirs="Invalid MR service TD",
        applies=lambda machine: any(machine.mrservicetd),
    ),
    # Intel's rule is another one.
    Divergence(
        name="when a relaunch of the TD is advised",
        case=_relaunch(5, (5, "OutOfDate")),
        ours="TDRelaunchAdvised",
        theirs="OutOfDate",
    ),
    Divergence(
        name="what is loaded now is below every level",
        case=_relaunch(1, (5, "UpToDate"), (2, "OutOfDate")),
        ours="UpToDate",
        theirs="Failed to evaluate the current TDX TCB",
    ),
    # It does not look.
    Divergence(
        name="TCB info for another PCEID",
        case=_described(SGX_V3, machine=Machine(pce_id=b"\0\1")),
        ours="tcb-info-pceid",
        theirs="UpToDate",
    ),
    Divergence(
        name="collateral signed by a PCK",
        case=_signed_by_another(
            lambda judge, case: (
                case.pck,
                case.pck.pem + judge.root.ca.pem + judge.root.root.pem,
            )
        ),
        ours="certificate-chain-length",
        theirs="UpToDate",
    ),
    Divergence(
        name="collateral signed by another end entity of the root",
        case=_signed_by_another(_other_end_entity),
        ours="certificate-name",
        theirs="UpToDate",
    ),
    Divergence(
        name="a PCK issued by the root itself",
        case=_pck_by_root,
        ours="certificate-name",
        theirs="UpToDate",
    ),
    Divergence(
        name="a PCK whose CPUSVN contradicts its components",
        case=_contradicting_pck,
        ours="pck-extension",
        theirs="UpToDate",
    ),
    Divergence(
        name="certification data of another type than 6 outside",
        case=_with_quote(TD_10_V4, _outer_type),
        ours="certification-type-unsupported",
        theirs="UpToDate",
    ),
    Divergence(
        name="bytes that are not zero after the quote",
        case=_with_quote(SGX_V3, lambda quote: quote + b"\1"),
        ours="quote-trailing-bytes",
        theirs="UpToDate",
    ),
    Divergence(
        name="two alike levels",
        case=_described(
            SGX_V3,
            levels=(met_level(MACHINE, tee="sgx", date=datetime(2026, 1, 1)),) * 2,  # noqa: DTZ001
        ),
        ours="collateral-malformed",
        theirs="UpToDate",
    ),
    Divergence(
        name="a TCB type that is unknown",
        case=_described(SGX_V3, tcb_info_extra={"tcbType": 1}),
        ours="collateral-malformed",
        theirs="UpToDate",
    ),
    Divergence(
        name="QE attributes expected outside their mask",
        case=_described(SGX_V3, qe_identity_extra={"attributes": "15" + "00" * 15}),
        ours="qe-attributes",
        theirs="UpToDate",
    ),
)
