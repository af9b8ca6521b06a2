"""Milliseconds per verification of a quote, SGX and TDX, beside dcap-qvl.

Both verify the same simulated quotes with the same collateral, turn by turn on one
core, so that a noisy machine disturbs both. Ours is measured from bytes (quote and
collateral parsed each time), as dcap-qvl's is, and with collateral parsed before, as
nodes do that keep it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dcap_qvl

from cloister.attestation.collateral import parse_collateral
from cloister.attestation.evidence import parse_evidence
from cloister.attestation.platforms.measurement import Installation, node_measurement
from cloister.attestation.platforms.simulated.collateral import (
    SimulatedCollateral,
    enclave_level,
    met_level,
)
from cloister.attestation.platforms.simulated.profile import MACHINE, Machine
from cloister.attestation.platforms.simulated.quotes import SGX_V3, TD_10_V4, QuoteForm
from cloister.attestation.platforms.simulated.root import (
    SimulatedRoot,
    create_simulated_root,
)
from cloister.attestation.platforms.simulated.scenario import (
    SimulatedCase,
    SimulatedScenario,
)
from cloister.attestation.verify import verify_evidence
from reporting import Figure, report

AT = datetime(2026, 11, 20, tzinfo=UTC)
REACH_MS = 3.0
# As many as Intel has for a platform of some age.
LEVELS = 11
REVOKED = 70


def as_intels(form: QuoteForm, root: SimulatedRoot) -> SimulatedCase:
    """Returns a platform whose collateral is as long as Intel's."""
    older = [
        Machine(
            component_svns=tuple(max(0, svn - age) for svn in MACHINE.component_svns)
        )
        for age in range(1, LEVELS)
    ]
    levels = (MACHINE, *older)
    distinct = {machine.component_svns: machine for machine in levels}
    collateral = SimulatedCollateral(
        tee=form.tee,
        at=AT,
        levels=tuple(
            met_level(machine, tee=form.tee, date=AT, advisory_ids=("INTEL-SA-00615",))
            for machine in distinct.values()
        )
        + tuple(
            met_level(
                Machine(component_svns=(0,) * 16, pce_svn=pce), tee=form.tee, date=AT
            )
            for pce in range(1, 1 + LEVELS - len(distinct))
        ),
        qe_levels=tuple(enclave_level(svn, date=AT) for svn in (8, 6, 5, 4, 2, 1)),
        revoked_by_ca=tuple(range(1, 1 + REVOKED)),
    )
    installation = Installation(
        interpreter=bytes(32),
        installed=bytes(32),
        interpreter_files=1,
        installed_files=1,
        total_bytes=1,
    )
    return SimulatedScenario(
        form=form,
        at=AT,
        measurement=node_measurement(installation, sources=(b"",), role="worker"),
        collateral=collateral,
    ).build(root)


def measured(
    works: dict[str, Callable[[], object]], *, rounds: int
) -> dict[str, float]:
    """Returns the median milliseconds of each work, done turn by turn."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            # The first turn warms up.
            if turn:
                spent[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(times) for name, times in spent.items()}


def works(case: SimulatedCase, root: SimulatedRoot) -> dict[str, Callable[[], object]]:
    """Returns what is measured: one verification each."""
    text = json.dumps(case.collateral)
    collateral = parse_collateral(text)
    trust_root = root.trust_root
    at = AT + timedelta(days=1)
    return {
        "from bytes": lambda: verify_evidence(
            parse_evidence(case.quote),
            collateral=parse_collateral(text),
            root=trust_root,
            at=at,
        ),
        "collateral kept": lambda: verify_evidence(
            parse_evidence(case.quote), collateral=collateral, root=trust_root, at=at
        ),
        "dcap-qvl, from bytes": lambda: dcap_qvl.verify_with_root_ca(
            case.quote,
            dcap_qvl.QuoteCollateralV3.from_json(text),
            trust_root.der,
            int(at.timestamp()),
        ),
    }


def main() -> None:
    """Measures both kinds of quote and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = create_simulated_root(Path(scratch) / "root", at=AT)
        for form in (SGX_V3, TD_10_V4):
            case = as_intels(form, root)
            for name, value in measured(
                works(case, root), rounds=arguments.rounds
            ).items():
                is_ours = not name.startswith("dcap-qvl")
                figures.append(
                    Figure(
                        name=f"{form.tee.upper()}: {name}",
                        value=value,
                        unit="ms",
                        reach=f"at most {REACH_MS:g}" if is_ours else "",
                        ok=value <= REACH_MS or not is_ours,
                    )
                )
    report("One verification of a quote", figures, as_json=arguments.json)


if __name__ == "__main__":
    main()
