"""Rows about tables: secure averaging, and breast cancer."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from functools import partial

from cloister.cli.recipes import BREAST_CANCER
from cloister.workloads.breast_cancer import CLASSES, FEATURES, deal_breast_cancer
from cloister.workloads.tabular import TabularClassification
from reporting import Figure
from results_order import ROOT, Order, row_of, seeded, today
from results_row import Row
from results_run import accuracy_of, run_streams, scratch
from turns import in_memory

# Printed in the article that this supersedes.
PRINTED = {"predictions": (0.1221, 0.0984, 0.8764, 0.8526), "loss": (0.0616,)}


def secure_averaging(order: Order) -> Row:
    """The two owners outside, the aggregator attested; numbers of the article."""
    began = time.perf_counter()
    script = ROOT / "examples" / "secure_averaging" / "run.py"
    with scratch() as directory:
        done = subprocess.run(
            [sys.executable, str(script), str(directory)],
            capture_output=True,
            text=True,
            check=True,
        )
    said = dict(
        line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line
    )
    figures = []
    for name, printed in PRINTED.items():
        got = [float(value) for value in said[name].split()]
        apart = max(abs(a - b) for a, b in zip(got, printed, strict=True))
        figures.append(
            Figure(
                name=f"{name}: farthest from what the article prints",
                value=apart,
                unit="",
                reach="at most 1e-4",
                ok=apart <= 1.001e-4,
            )
        )
    return Row(
        name="secure-averaging",
        title="Secure averaging: two owners outside, the aggregator attested",
        data="the article's four records",
        split="2 each, which serve to measure as well",
        seeds=[7],
        epochs=50,
        plan="fedavg, 10 rounds of 5 local steps over all own records, SGD at rate 0.1",
        command="python examples/secure_averaging/run.py DIR",
        seconds=time.perf_counter() - began,
        figures=figures,
        date=today(),
        quick=order.quick,
    )


def breast_cancer(order: Order) -> Row:
    """All hospitals together, and each of them alone, on the same held-out records."""
    task = TabularClassification(features=FEATURES, classes=CLASSES)
    together: list[float] = []
    alone: dict[str, list[float]] = {name: [] for name in BREAST_CANCER.workers}
    outcomes = []
    for seed in order.seeds:
        dealt = deal_breast_cancer(BREAST_CANCER.workers, seed=seed)
        everything = in_memory(*dealt.values())
        groups = [BREAST_CANCER.workers, *((name,) for name in BREAST_CANCER.workers)]
        edit = partial(seeded, order=order, seed=seed)
        for group in groups:
            mine = {name: dealt[name] for name in group}
            outcome = run_streams("breast-cancer", mine, edit=edit)
            right = 100 * accuracy_of(outcome, task, everything)
            if len(group) > 1:
                outcomes.append(outcome)
                together.append(right)
            else:
                alone[group[0]].append(right)
    best = max(statistics.mean(found) for found in alone.values())
    mean = statistics.mean(together)
    return row_of(
        order,
        outcomes,
        name="breast-cancer",
        title="Breast cancer: three hospitals with different patients",
        data="scikit-learn's Breast Cancer Wisconsin (Diagnostic)",
        command="cloister init DIR --recipe breast-cancer",
        figures=[
            Figure(
                name=f"accuracy together, mean of {len(together)} seeds",
                value=mean,
                unit="%",
                reach=order.reach("more than any hospital alone"),
                ok=mean > best,
            ),
            *(
                Figure(
                    name=f"accuracy of {name} alone",
                    value=statistics.mean(found),
                    unit="%",
                )
                for name, found in alone.items()
            ),
        ],
    )
