"""What a party's own policy asks of the nodes of other parties."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.support.plan_tree import ROOT, policy

from cloister.attestation.policy import Policy, SgxReference, TdxReference
from cloister.custody.local_policy import for_another_party

PLATFORM, ANOTHER = 32 * "1", 32 * "2"
SERVICE_TD = 96 * "3"
# Theirs: code, and machines.
FROM_THE_PLAN = {
    "sgx",
    "sgx_exact",
    "tdx",
    "mrservicetd",
    "platforms",
}


def plans(**changes: Any) -> Policy:
    made = msgspec.convert(policy("worker", ROOT), Policy)
    return msgspec.structs.replace(made, **changes)


def local(**changes: Any) -> Policy:
    made = Policy(
        root=ROOT,
        sgx=(SgxReference(mr_enclave="ab" * 32),),
        tdx=(
            TdxReference(
                **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2"), 96 * "c")
            ),
        ),
        platforms=(PLATFORM,),
        tcb_statuses=("SWHardeningNeeded", "OutOfDate"),
        accepted_advisories=("INTEL-SA-00001",),
        tcb_grace_days=3,
        min_tcb_evaluation_number=17,
        debug="accepted-insecurely",
        sept_ve_disable="any",
    )
    return msgspec.structs.replace(made, **changes)


def test_code_and_machines_are_the_plans_and_all_else_is_the_partys() -> None:
    theirs = plans(platforms=(ANOTHER,), mrservicetd=(SERVICE_TD,))
    own = local()
    asked = for_another_party(own, plans=theirs)
    for name in Policy.__struct_fields__:
        of = theirs if name in FROM_THE_PLAN else own
        assert getattr(asked, name) == getattr(of, name), name


def test_without_a_list_in_the_plan_the_partys_own_does_not_hold_for_others() -> None:
    assert for_another_party(local(), plans=plans()).platforms is None


@pytest.mark.parametrize("rule", ["required", "any"])
def test_who_says_nothing_of_trust_domains_asks_nothing_more_of_them(rule: str) -> None:
    """A policy for an enclave cannot speak of them: it would be ignored there."""
    enclave = local(tdx=(), sept_ve_disable="required")
    asked = for_another_party(enclave, plans=plans(sept_ve_disable=rule))
    assert asked.sept_ve_disable == rule
    # With a trust domain of its own it does.
    assert (
        for_another_party(
            local(sept_ve_disable="required"), plans=plans(sept_ve_disable=rule)
        ).sept_ve_disable
        == "required"
    )


def test_a_plan_for_enclaves_alone_makes_a_policy_too() -> None:
    asked = for_another_party(local(), plans=plans(tdx=()))
    assert asked.tdx == ()
    assert asked.min_tcb_evaluation_number == 17


@pytest.mark.parametrize("root", ["hardware", f"simulated:sha256:{64 * 'b'}"])
def test_another_root_is_refused_as_before(root: str) -> None:
    """Under Intel's root no policy is made of a plan that lists no machines."""
    own = local(root=root)
    assert for_another_party(own, plans=plans()) is own
