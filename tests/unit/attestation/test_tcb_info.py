from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, get_args

import pytest

from cloister.attestation.platforms.simulated.collateral import SimulatedCollateral
from cloister.attestation.reports import Tee
from cloister.attestation.tcb_info import TcbInfo, parse_tcb_info
from cloister.attestation.tcb_status import LevelStatus
from cloister.errors import VerificationError

# JSON is a tree of anything; only tests walk it untyped.
Document = dict[str, Any]
TEES: tuple[Tee, ...] = ("sgx", "tdx")


def document(tee: Tee, at: datetime) -> Document:
    made = SimulatedCollateral(tee=tee, at=at).tcb_info()
    return copy.deepcopy(made)


def parsed(made: Document) -> TcbInfo:
    return parse_tcb_info(json.dumps(made).encode())


def refused(made: Document) -> str:
    with pytest.raises(VerificationError) as refusal:
        parsed(made)
    assert (refusal.value.code, refusal.value.step) == ("collateral-malformed", 4)
    return refusal.value.what


def level(*svns: int, pce: int, tdx: tuple[int, ...] = ()) -> Document:
    tcb: Document = {
        "sgxtcbcomponents": [{"svn": svn} for svn in (*svns, *[0] * 16)[:16]],
        "pcesvn": pce,
    }
    if tdx:
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in (*tdx, *[0] * 16)[:16]]
    return {"tcb": tcb, "tcbDate": "2026-01-02T03:04:05Z", "tcbStatus": "UpToDate"}


def test_tcb_info_gives_its_fields(at: datetime) -> None:
    info = parsed(document("tdx", at))
    assert info.tee == "tdx"
    assert info.fmspc.hex() == "ff53494d0001"
    assert info.pce_id == bytes(2)
    assert info.issue_date == at
    assert info.evaluation_number == 1
    assert info.tdx_module is not None
    assert info.tdx_module.levels == ()
    assert list(info.tdx_module_identities) == [1]
    (only,) = info.levels
    assert only.status == "UpToDate"
    assert only.advisory_ids == ()
    assert len(only.sgx_svns) == len(only.tdx_svns) == 16


@pytest.mark.parametrize("tee", TEES)
def test_every_field_is_needed_but_the_advisories(at: datetime, tee: Tee) -> None:
    optional = {"tdxModuleIdentities"}
    for name in document(tee, at).keys() - optional:
        made = document(tee, at)
        del made[name]
        refused(made)
    for name in ("tcb", "tcbDate", "tcbStatus"):
        made = document(tee, at)
        del made["tcbLevels"][0][name]
        refused(made)
    for name in document(tee, at)["tcbLevels"][0]["tcb"]:
        made = document(tee, at)
        del made["tcbLevels"][0]["tcb"][name]
        refused(made)


WRONG: dict[str, Callable[[Document], object]] = {
    "version 2": lambda it: it.update(version=2),
    "version 4": lambda it: it.update(version=4),
    "version as text": lambda it: it.update(version="3"),
    "an unknown id": lambda it: it.update(id="SEV"),
    "an id in another case": lambda it: it.update(id=it["id"].lower()),
    "a TCB type": lambda it: it.update(tcbType=1),
    "FMSPC of five bytes": lambda it: it.update(fmspc="00" * 5),
    "FMSPC of no hex": lambda it: it.update(fmspc="0x" + "00" * 5),
    "FMSPC with a line break": lambda it: it.update(fmspc="00" * 6 + "\n"),
    "PCEID of three bytes": lambda it: it.update(pceId="00" * 3),
    "a date without zone": lambda it: it.update(issueDate="2026-01-01T00:00:00"),
    "a date of another zone": lambda it: it.update(
        nextUpdate="2026-01-01T00:00:00+01:00"
    ),
    "a day that is none": lambda it: it.update(issueDate="2026-02-30T00:00:00Z"),
    "a negative number": lambda it: it.update(tcbEvaluationDataNumber=-1),
    "a number of 33 bits": lambda it: it.update(tcbEvaluationDataNumber=2**32),
    "no levels": lambda it: it.update(tcbLevels=[]),
    "levels that are none": lambda it: it.update(tcbLevels={}),
    "too many levels": lambda it: it.update(tcbLevels=it["tcbLevels"] * 1_001),
    "two alike": lambda it: it.update(tcbLevels=it["tcbLevels"] * 2),
    "15 components": lambda it: it["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].pop(),
    "17 components": lambda it: it["tcbLevels"][0]["tcb"]["sgxtcbcomponents"].append(
        {"svn": 0}
    ),
    "an SVN of 256": lambda it: it["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][3].update(
        svn=256
    ),
    "an SVN below zero": lambda it: it["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][
        3
    ].update(svn=-1),
    "a PCESVN of 65536": lambda it: it["tcbLevels"][0]["tcb"].update(pcesvn=65_536),
    "an unknown status": lambda it: it["tcbLevels"][0].update(tcbStatus="Fine"),
    "a status that is concluded": lambda it: it["tcbLevels"][0].update(
        tcbStatus="TDRelaunchAdvised"
    ),
    "a status in another case": lambda it: it["tcbLevels"][0].update(
        tcbStatus="uptodate"
    ),
    "advisories that are no list": lambda it: it["tcbLevels"][0].update(
        advisoryIDs="INTEL-SA-00001"
    ),
    "an advisory that is no name": lambda it: it["tcbLevels"][0].update(
        advisoryIDs=["\u202e"]
    ),
}


@pytest.mark.parametrize("tee", TEES)
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_a_field_of_a_wrong_form_is_refused(
    at: datetime, tee: Tee, change: Callable[[Document], object]
) -> None:
    made = document(tee, at)
    change(made)
    refused(made)


TDX_WRONG: dict[str, Callable[[Document], object]] = {
    "no TDX components": lambda it: it["tcbLevels"][0]["tcb"].pop("tdxtcbcomponents"),
    "a TDX SVN of 256": lambda it: it["tcbLevels"][0]["tcb"]["tdxtcbcomponents"][
        0
    ].update(svn=256),
    "no module": lambda it: it.pop("tdxModule"),
    "a module without signer": lambda it: it["tdxModule"].pop("mrsigner"),
    "identities that are none": lambda it: it.update(tdxModuleIdentities=[]),
    "an identity of another name": lambda it: it["tdxModuleIdentities"][0].update(
        id="TDX_1"
    ),
    "two identities of one version": lambda it: it.update(
        tdxModuleIdentities=it["tdxModuleIdentities"] * 2
    ),
    "an identity without levels": lambda it: it["tdxModuleIdentities"][0].update(
        tcbLevels=[]
    ),
    "two alike levels": lambda it: it["tdxModuleIdentities"][0].update(
        tcbLevels=it["tdxModuleIdentities"][0]["tcbLevels"] * 2
    ),
    "a module SVN of 256": lambda it: it["tdxModuleIdentities"][0]["tcbLevels"][0][
        "tcb"
    ].update(isvsvn=256),
    "a module that needs configuration": lambda it: it["tdxModuleIdentities"][0][
        "tcbLevels"
    ][0].update(tcbStatus="ConfigurationNeeded"),
}


@pytest.mark.parametrize("change", TDX_WRONG.values(), ids=TDX_WRONG.keys())
def test_a_tdx_part_of_a_wrong_form_is_refused(
    at: datetime, change: Callable[[Document], object]
) -> None:
    made = document("tdx", at)
    change(made)
    refused(made)


def test_tcb_info_for_sgx_with_tdx_parts_is_refused(at: datetime) -> None:
    tdx = document("tdx", at)
    for name in ("tdxModule", "tdxModuleIdentities"):
        refused({**document("sgx", at), name: tdx[name]})
    refused({**document("sgx", at), "tcbLevels": tdx["tcbLevels"]})


def test_every_status_of_intels_is_known(at: datetime) -> None:
    for status in get_args(LevelStatus):
        made = document("sgx", at)
        made["tcbLevels"][0]["tcbStatus"] = status
        assert parsed(made).levels[0].status == status


def test_levels_are_sorted_as_intels_library_sorts_them(at: datetime) -> None:
    ranks = [
        level(1, 255, pce=9, tdx=(9,)),
        level(2, pce=5, tdx=(1, 0, 1)),
        level(2, pce=5, tdx=(1, 0, 2)),
        level(2, pce=6, tdx=(0, 1)),
        level(2, 1, pce=1, tdx=(0, 1)),
    ]
    for turned in (ranks, ranks[::-1], ranks[2:] + ranks[:2]):
        info = parsed({**document("tdx", at), "tcbLevels": turned})
        assert [
            (it.sgx_svns[:2], it.pce_svn, it.tdx_svns[:3]) for it in info.levels
        ] == [
            ((2, 1), 1, (0, 1, 0)),
            ((2, 0), 6, (0, 1, 0)),
            ((2, 0), 5, (1, 0, 2)),
            ((2, 0), 5, (1, 0, 1)),
            ((1, 255), 9, (9, 0, 0)),
        ]


def test_levels_of_a_module_are_sorted_too(at: datetime) -> None:
    made = document("tdx", at)
    (identity,) = made["tdxModuleIdentities"]
    (only,) = identity["tcbLevels"]
    identity["tcbLevels"] = [
        {**only, "tcb": {"isvsvn": svn}} for svn in (3, 255, 0, 10)
    ]
    module = parsed(made).tdx_module_identities[1]
    assert [it.isv_svn for it in module.levels] == [255, 10, 3, 0]
