"""Appraisal: is genuine evidence what I want? Closed by default, hashed whole.

Every check below is done for every claim; what a policy accepts is said in it by name
(`policy_schema`, `reference_values`). There is no switch that turns a check off and no
clock: an age is measured at the time that the evidence was verified for.

Not looked at, because it differs between hosts that are equally good or is covered by
the collateral's own judgement: XFAM and XFRM (CET among them), CPUSVN and TEE_TCB_SVN,
MISCSELECT, CONFIGID and what else a policy has no word for. `report_data` is the
caller's: it proves for whom the evidence was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cloister.attestation.claims import Claims
from cloister.attestation.environment_checks import Check, environment_checks
from cloister.attestation.policy_schema import (
    OUT_OF_DATE,
    Policy,
    policy_sha256,
)
from cloister.attestation.reference_values import (
    Pin,
    Reference,
    SgxExactReference,
    SgxReference,
    TdxReference,
)
from cloister.errors import AppraisalError

__all__ = [
    "Check",
    "Policy",
    "SgxExactReference",
    "SgxReference",
    "TdxReference",
    "TightenedVerdict",
    "Verdict",
    "appraise",
    "appraise_tightened",
    "examine",
    "policy_sha256",
]

# A refusal names this many accepted references; a page of hex helps nobody.
_NAMED_REFERENCES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Genuine evidence that a policy accepted; made by `appraise` and nowhere else.

    Attributes:
        claims: What was appraised.
        policy_sha256: The policy's hash, lower-case hex.
        checks: Every check, all of them passed.
    """

    claims: Claims
    policy_sha256: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TightenedVerdict:
    """Genuine evidence that two policies accepted; made by `appraise_tightened`.

    Attributes:
        plan: Under the policy that everybody agreed on.
        local: Under the party's own, which can only refuse more.
    """

    plan: Verdict
    local: Verdict


def appraise(claims: Claims, policy: Policy) -> Verdict:
    """Returns the verdict, if and only if every check passes.

    Checks, all of them always done:

    1. the evidence is genuine under the root that the policy names, and no other;
    2. the platform is one that the policy lists;
    3. its TCB status is one that the policy lists, and not out of date for too long;
    4. every advisory it is open to is one that the policy lists;
    5. the collateral is not older than the policy asks for;
    6. the host cannot look inside (debug);
    7. TDX: the host cannot inject exceptions by taking pages away (SEPT_VE_DISABLE);
    8. TDX: no service TD is bound that the policy does not list;
    9. the measurement is one that the policy lists for this kind of environment.

    Raises:
        AppraisalError: If any check fails; its code is the first failing check's, its
            text names them all.
    """
    outcomes = examine(claims, policy)
    failures = [outcome for outcome in outcomes if isinstance(outcome, AppraisalError)]
    if failures:
        raise _all_of(failures) from failures[0]
    return Verdict(
        claims=claims,
        policy_sha256=policy_sha256(policy),
        checks=tuple(outcome for outcome in outcomes if isinstance(outcome, Check)),
    )


def appraise_tightened(
    claims: Claims, *, plan_policy: Policy, local_policy: Policy
) -> TightenedVerdict:
    """Returns both verdicts, if and only if both policies accept.

    A party's own policy can so only tighten what the plan says: nothing in it makes the
    plan's policy accept more.

    Raises:
        AppraisalError: If either refuses; the text names every failing check of both.
    """
    verdicts: list[Verdict] = []
    refusals: list[AppraisalError] = []
    for whose, policy in (
        ("by the plan's policy", plan_policy),
        ("by this party's own policy", local_policy),
    ):
        try:
            verdicts.append(appraise(claims, policy))
        except AppraisalError as refusal:
            refusals.append(_said(refusal, whose))
    if refusals:
        raise _all_of(refusals) from refusals[0]
    plan, local = verdicts
    return TightenedVerdict(plan=plan, local=local)


def examine(claims: Claims, policy: Policy) -> tuple[Check | AppraisalError, ...]:
    """Returns the outcome of every check of `appraise`, for showing to people.

    Whoever decides by it calls `appraise`.
    """
    return (
        _check_root(claims, policy),
        _check_platform(claims, policy),
        _check_tcb_status(claims, policy),
        _check_advisories(claims, policy),
        _check_evaluation_number(claims, policy),
        *environment_checks(claims, policy),
        _check_measurement(claims, policy),
    )


def _check_root(claims: Claims, policy: Policy) -> Check | AppraisalError:
    if claims.root_name != policy.root:
        return AppraisalError(
            "evidence is not under the root that the policy names",
            code="appraisal-root",
            expected=policy.root,
            got=claims.root_name,
            remedy="a simulated node cannot take part in a hardware plan, nor one "
            "deployment's node in another's",
        )
    return Check(code="appraisal-root", reason=f"genuine under {claims.root_name}")


def _check_platform(claims: Claims, policy: Policy) -> Check | AppraisalError:
    code = "appraisal-platform"
    if policy.platforms is None or policy.platforms == "any":
        return Check(code=code, reason=f"any platform under {policy.root} is accepted")
    identifiers = {"PPID": claims.ppid, "instance": claims.platform_instance_id}
    for name, identifier in identifiers.items():
        if identifier in policy.platforms:
            return Check(code=code, reason=f"platform {name} {identifier} is listed")
    return AppraisalError(
        "the platform is not one that the policy lists",
        code=code,
        expected=" or ".join(policy.platforms[:_NAMED_REFERENCES]),
        got=", ".join(f"{name} {it or 'none'}" for name, it in identifiers.items()),
        remedy="ask the peer's host which machine this is; an instance ID changes when "
        "the machine is registered again",
    )


def _check_tcb_status(claims: Claims, policy: Policy) -> Check | AppraisalError:
    code, status, date = "appraisal-tcb-status", claims.tcb_status, claims.tcb_date
    if status not in policy.tcb_statuses:
        return AppraisalError(
            "the platform's TCB status is not one that the policy lists",
            code=code,
            expected=" or ".join(policy.tcb_statuses),
            got=f"{status}, TCB level of {date:%Y-%m-%d}",
            remedy="update the platform's firmware and configuration, or list the "
            "status if the policy should accept it",
        )
    if status in OUT_OF_DATE:
        age = claims.verified_at - date
        grace = timedelta(days=policy.tcb_grace_days or 0)
        # A level dated near the end of all dates is not late before that.
        ends = date + min(grace, datetime.max.replace(tzinfo=UTC) - date)
        if age > grace:
            return AppraisalError(
                "the platform has been out of date for longer than the policy allows",
                code=code,
                expected=f"verification by {ends:%Y-%m-%d}, {policy.tcb_grace_days} "
                "days after its TCB level's date",
                got=f"{status} on {claims.verified_at:%Y-%m-%d}, TCB level of "
                f"{date:%Y-%m-%d}",
                remedy="update the platform's firmware",
            )
        return Check(code=code, reason=f"{status} is accepted until {ends:%Y-%m-%d}")
    return Check(code=code, reason=f"{status} is in the policy")


def _check_advisories(claims: Claims, policy: Policy) -> Check | AppraisalError:
    code, accepted = "appraisal-advisories", policy.accepted_advisories
    if not claims.advisory_ids:
        return Check(code=code, reason="the platform is open to no known advisory")
    open_to = ", ".join(claims.advisory_ids)
    if accepted == "any":
        return Check(code=code, reason=f"any advisory is accepted: {open_to}")
    unlisted = [it for it in claims.advisory_ids if it not in accepted]
    if unlisted:
        return AppraisalError(
            "the platform is open to advisories that the policy does not list",
            code=code,
            expected=f"none but {', '.join(accepted)}" if accepted else "none",
            got=", ".join(unlisted),
            remedy="read them and update the platform, or list those that do not "
            "matter here",
        )
    return Check(code=code, reason=f"each is in the policy: {open_to}")


def _check_evaluation_number(claims: Claims, policy: Policy) -> Check | AppraisalError:
    code = "appraisal-evaluation-number"
    number, wanted = claims.tcb_evaluation_number, policy.min_tcb_evaluation_number
    if number < wanted:
        return AppraisalError(
            "the evidence was judged by collateral that is too old for the policy",
            code=code,
            expected=f"TCB evaluation number {wanted} or higher",
            got=str(number),
            remedy="fetch newer collateral, if need be the early update",
        )
    return Check(code=code, reason=f"TCB evaluation number {number}, at least {wanted}")


def _check_measurement(claims: Claims, policy: Policy) -> Check | AppraisalError:
    accepted, measured = policy.references(claims.tee), claims.measurements
    for reference in accepted:
        if all(pin.holds(measured) for pin in reference.pins()):
            return Check(
                code="appraisal-measurement",
                reason=f"{_in_words(reference.pins())} is in the policy",
            )
    return AppraisalError(
        "the peer runs other code than the policy accepts",
        code="appraisal-measurement",
        expected=_alternatives(accepted) or f"no {claims.tee} environment at all",
        got=", ".join(f"{name} {getattr(measured, name)}" for name in _asked(accepted))
        or f"an {claims.tee} environment",
        remedy="compare task.py and the installed packages with the other parties; "
        "`cloister measure PLAN` prints what this machine runs",
    )


def _asked(accepted: tuple[Reference, ...]) -> tuple[str, ...]:
    """Returns the names that any reference asks for, in order, each once."""
    names = (pin.name for reference in accepted for pin in reference.pins())
    return tuple(dict.fromkeys(names))


def _alternatives(accepted: tuple[Reference, ...]) -> str:
    named = " or ".join(_in_words(it.pins()) for it in accepted[:_NAMED_REFERENCES])
    more = len(accepted) - _NAMED_REFERENCES
    return f"{named} or one of {more} more" if more > 0 else named


def _in_words(pins: tuple[Pin, ...]) -> str:
    return ", ".join(
        f"{pin.name} {'' if pin.relation == 'is' else 'at least '}{pin.value}"
        for pin in pins
    )


def _said(refusal: AppraisalError, whose: str) -> AppraisalError:
    return AppraisalError(
        f"{whose}: {refusal.what}",
        code=refusal.code,
        expected=refusal.expected,
        got=refusal.got,
        remedy=refusal.remedy,
    )


def _all_of(failures: list[AppraisalError]) -> AppraisalError:
    return AppraisalError(
        "; ".join(failure.what for failure in failures),
        code=failures[0].code,
        expected="; ".join(failure.expected for failure in failures),
        got="; ".join(failure.got for failure in failures),
        remedy="; ".join(failure.remedy for failure in failures),
    )
