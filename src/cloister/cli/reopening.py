"""Evaluates an opened model as the workers did, to show that it is the same model."""

from __future__ import annotations

from pathlib import Path

from cloister.cli.places import read_place
from cloister.errors import ConfigError
from cloister.federation.messages import EvaluationReport
from cloister.federation.rounds.reports import mean_metrics
from cloister.federation.task import LearnerSettings
from cloister.federation.task_loading import load_task, read_task_source
from cloister.plan.plan import Plan
from cloister.storage.model_vault import OpenedModel
from cloister.storage.raw_shard import open_raw_shard


def evaluate_opened(
    plan_path: Path, plan: Plan, opened: OpenedModel
) -> dict[str, float]:
    """Returns the opened model's metrics over all parties' held-out records.

    Works where one person has every party's data, as in a demonstration.

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
        place = read_place(plan_path, role="worker", party=party.name, site_path=None)
        if place.site.paths.data is None:
            raise ConfigError(f"{party.name!r} has no data", code="data-missing")
        source = open_raw_shard(place.at_site(place.site.paths.data), task.schema())
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
