"""Step 6, end to end: which TDX module, whose, and how it runs."""

from __future__ import annotations

import pytest
from tests.unit.attestation.scenarios import Judge

from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    enclave_level,
)
from cloister.attestation.platforms.simulated.profile import MRSIGNERSEAM, Machine
from cloister.attestation.platforms.simulated.quotes import (
    TD_10_V4,
    TD_10_V5,
    TD_15_V5,
    QuoteForm,
)
from cloister.attestation.platforms.simulated.scenario import SimulatedCase

FORMS = (TD_10_V4, TD_10_V5, TD_15_V5)
NO_MODULE = bytes(16)


@pytest.fixture(params=FORMS, ids=["1.0 v4", "1.0 v5", "1.5 v5"])
def form(request: pytest.FixtureRequest) -> QuoteForm:
    made: QuoteForm = request.param
    return made


def case(
    judge: Judge,
    form: QuoteForm,
    machine: Machine,
    *,
    majors: tuple[int, ...] = (1,),
    module: dict[str, str] | None = None,
) -> SimulatedCase:
    """Builds a machine with module identities of some major versions."""
    content = SimulatedCollateral(
        tee="tdx",
        at=judge.at,
        machine=machine,
        module_levels={major: (enclave_level(1, date=judge.at),) for major in majors},
    )
    if module is not None:
        described = {**content.tcb_info()["tdxModule"], **module}  # type: ignore[dict-item]
        extra: dict[str, object] = {"tdxModule": described}
        if majors:
            extra["tdxModuleIdentities"] = [
                {
                    **identity,
                    **module,
                }
                for identity in content.tcb_info()["tdxModuleIdentities"]  # type: ignore[attr-defined]
            ]
        content = SimulatedCollateral(
            tee="tdx",
            at=judge.at,
            machine=machine,
            module_levels=content.module_levels,
            tcb_info_extra=extra,
        )
    return judge.scenario(form, machine=machine, collateral=content).build(judge.root)


def test_the_module_of_the_reports_major_version_counts(
    judge: Judge, form: QuoteForm
) -> None:
    for major in (1, 3, 0xAB, 0xFF):
        machine = Machine(tee_tcb_svn=bytes([5, major, 2]) + bytes(13))
        made = case(judge, form, machine, majors=(1, 3, 0xAB, 0xFF))
        assert judge.claims(made).tcb_status == "UpToDate"


def test_a_module_that_the_tcb_info_does_not_know_is_refused(
    judge: Judge, form: QuoteForm
) -> None:
    machine = Machine(tee_tcb_svn=bytes([5, 2, 2]) + bytes(13))
    for majors in ((1, 3), ()):
        error = judge.refusal(case(judge, form, machine, majors=majors))
        assert (error.code, error.step) == ("tdx-module-unknown", 6)
        assert error.got == "TDX_02"


def test_an_old_module_needs_no_identity(judge: Judge, form: QuoteForm) -> None:
    machine = Machine(tee_tcb_svn=bytes([5, 0, 2]) + bytes(13))
    for majors in ((1,), ()):
        made = case(judge, form, machine, majors=majors)
        assert judge.claims(made).tcb_status == "UpToDate"


@pytest.mark.parametrize("major", [0, 1])
def test_a_module_of_another_signer_is_refused(
    judge: Judge, form: QuoteForm, major: int
) -> None:
    svn = bytes([5, major, 2]) + bytes(13)
    for signer in (b"\1" + bytes(47), bytes(47) + b"\1"):
        foreign = Machine(tee_tcb_svn=svn, mrsignerseam=signer)
        made = case(judge, form, foreign)
        assert judge.refused(made) == ("tdx-module-signer", 6)
        # Not even zeros are right by themselves.
        described = case(
            judge, form, Machine(tee_tcb_svn=svn), module={"mrsigner": signer.hex()}
        )
        assert judge.refused(described) == ("tdx-module-signer", 6)
        both = case(judge, form, foreign, module={"mrsigner": signer.hex()})
        assert judge.claims(both).tcb_status == "UpToDate"
    assert bytes(48) == MRSIGNERSEAM


@pytest.mark.parametrize("major", [0, 1])
def test_a_module_with_attributes_is_refused_whatever_the_mask(
    judge: Judge, form: QuoteForm, major: int
) -> None:
    svn = bytes([5, major, 2]) + bytes(13)
    for attributes in (b"\1" + bytes(7), bytes(7) + b"\x80"):
        odd = Machine(tee_tcb_svn=svn, seam_attributes=attributes)
        for module in (
            None,
            {"attributesMask": "00" * 8},
            {"attributes": attributes.hex()},
        ):
            made = case(judge, form, odd, module=module)
            assert judge.refused(made) == ("tdx-module-attributes", 6)
    described = case(
        judge, form, Machine(tee_tcb_svn=svn), module={"attributes": "01" + "00" * 7}
    )
    assert judge.refused(described) == ("tdx-module-attributes", 6)
