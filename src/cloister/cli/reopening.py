"""Evaluates an opened model as the workers did, to show that it is the same model."""

from __future__ import annotations

from pathlib import Path

from cloister.cli.data_sealing import data_key
from cloister.cli.party_data import find_data
from cloister.cli.places import (
    CustodianPlace,
    default_custodian_path,
    read_custodian_place,
    read_place,
)
from cloister.federation.messages import EvaluationReport
from cloister.federation.rounds.reports import mean_metrics
from cloister.federation.task import LearnerSettings, Task
from cloister.federation.task_loading import load_task, read_task_source
from cloister.plan.plan import Party, Plan
from cloister.storage.keys import KeyKind, Secret
from cloister.storage.model_vault import OpenedModel
from cloister.storage.records import DataSource


def evaluate_opened(
    plan_path: Path, plan: Plan, opened: OpenedModel
) -> dict[str, float]:
    """Returns the opened model's metrics over all parties' held-out records.

    Works where one person has every party's data and custodian, as in a demonstration.

    Raises:
        CloisterError: If the task or a party's data cannot be opened.
    """
    task = load_task(
        read_task_source(plan_path.parent / plan.task.file),
        filename=plan.task.file,
        class_name=plan.task.class_,
        options=plan.task.options,
        simulated=plan.simulated,
    )
    model = task.load_exported(opened.arrays)
    reports = []
    for party in plan.workers:
        source = open_here(plan_path, party, task)
        settings = LearnerSettings(
            party=party.name,
            batch_size=plan.training.batch_size,
            seed=plan.training.seed,
            threads=plan.training.threads,
            precision=plan.training.precision,
        )
        learner = task.learner(source, settings)
        learner.load(model)
        evaluation = learner.evaluate()
        reports.append(
            EvaluationReport(examples=evaluation.examples, sums=dict(evaluation.sums))
        )
    return mean_metrics(reports)


class _CustodiansKey:
    """The data key of a custodian that runs here, as a node would get it."""

    def __init__(self, custodian: CustodianPlace, party: Party) -> None:
        self._custodian = custodian
        self._party = party

    def key(self, kind: KeyKind) -> Secret:
        """Returns the party's data key.

        Raises:
            CloisterError: If the custodian does not have it.
        """
        if kind != "data":
            raise RuntimeError("records are opened with a data key alone")
        return data_key(self._custodian, self._party.data_key)


def open_here(plan_path: Path, party: Party, task: Task) -> DataSource:
    """Returns a worker's records, with the key that its custodian here keeps.

    Raises:
        CloisterError: If they are not what the plan pins, or do not open.
    """
    place = read_place(plan_path, role="worker", party=party.name, site_path=None)
    custodian = read_custodian_place(default_custodian_path(plan_path, party.name))
    return find_data(place, task).open(_CustodiansKey(custodian, party))
