"""Rows about images: digits, CIFAR-10 and MNIST."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from cloister.cli.commands.init import order_for
from cloister.cli.recipes import CIFAR_RESNET_56, MNIST, Recipe
from cloister.federation.task import Precision
from cloister.workloads.darknet_classification import DarknetClassification
from cloister.workloads.image_classification import ImageClassification
from reporting import Figure
from results_order import Order, row_of, seeded
from results_row import Row
from results_run import accuracy_of, run_recipe
from turns import WARMUP_STEPS, PlainLoop, Turns, in_memory, rounds_for

CIFAR_DATA = "CIFAR-10, a subset of 10,000 training images and 2,000 test images"
FULL_CIFAR = 50_000


def digits(order: Order) -> Row:
    """What `cloister demo` trains."""
    outcome = run_recipe("digits", edit=order.shorten)
    accuracy = 100 * outcome.trained.metrics["accuracy"]
    return row_of(
        order,
        [outcome],
        name="digits",
        title="The demo: ResNet-56 on scanned digits",
        data="scikit-learn's scanned digits",
        command="cloister init DIR --recipe digits",
        figures=[
            Figure(
                name="held-out accuracy",
                value=accuracy,
                unit="%",
                reach=order.reach("at least 96"),
                ok=accuracy >= 96,
            )
        ],
    )


def resnet_56(order: Order) -> Row:
    """ResNet-56 on the subset of CIFAR-10, to the end."""
    outcome = run_recipe("cifar-10", data=order.data / "cifar-10", edit=order.shorten)
    accuracy = outcome.trained.metrics["accuracy"]
    return row_of(
        order,
        [outcome],
        name="cifar-10",
        title="ResNet-56 on CIFAR-10",
        data=CIFAR_DATA,
        command="cloister init DIR --recipe cifar-10 --data cifar-10",
        figures=[
            Figure(
                name="held-out accuracy",
                value=100 * accuracy,
                unit="%",
                reach=order.reach("at least 60"),
                ok=accuracy >= 0.60,
            ),
            Figure(name="training", value=outcome.seconds / 60, unit="minutes"),
        ],
    )


def resnet_56_speed(order: Order) -> Row:
    """Images a second beside a plain loop on the same cores, in turns."""
    steps, turns = (2, 2) if order.quick else (6, 10)
    source = order.data / "cifar-10"
    dealt = CIFAR_RESNET_56.deal(source, CIFAR_RESNET_56.workers, 7)
    batch = CIFAR_RESNET_56.batch_size * len(CIFAR_RESNET_56.workers)
    precision = _precision("cifar-10")
    loop = PlainLoop(
        ImageClassification(),
        in_memory(*dealt.values()),
        batch_size=batch,
        precision=precision,
    )
    taken = Turns(loop, steps)
    outcome = run_recipe(
        "cifar-10",
        data=source,
        edit=lambda it: it.for_rounds(rounds_for(steps=steps, turns=turns)),
        on_event=taken,
    )
    ratio, rate = 1 / taken.ratio(), batch / taken.step_seconds
    return row_of(
        order,
        [outcome],
        name="cifar-10-speed",
        title="ResNet-56 on CIFAR-10: images a second",
        data=CIFAR_DATA,
        command="cloister init DIR --recipe cifar-10 --data cifar-10",
        figures=[
            Figure(name="server and two workers, sealed data", value=rate, unit="/s"),
            Figure(
                name=f"plain loop, {loop.threads} threads, the same total batch",
                value=batch / taken.loop_seconds,
                unit="/s",
            ),
            Figure(
                name="ratio, median of all turns",
                value=ratio,
                unit="times",
                reach=order.reach("at least 0.9"),
                ok=ratio >= 0.9,
            ),
            Figure(
                name="projection: an epoch of all 50,000 images at that speed",
                value=FULL_CIFAR / rate / 60,
                unit="minutes",
            ),
        ],
    )


def resnet_50_precision(order: Order) -> Row:
    """ResNet-50 in both precisions, one after the other and again."""
    rounds = 3 if order.quick else WARMUP_STEPS + 8
    skipped = 1 if order.quick else WARMUP_STEPS
    found: dict[Precision, list[float]] = {"float32": [], "bfloat16": []}
    outcomes = []
    for precision in tuple(found) * (1 if order.quick else 2):
        edit = partial(_short, rounds=rounds, precision=precision)
        outcome = run_recipe(
            "cifar-10-resnet-50", data=order.data / "cifar-10", edit=edit
        )
        outcomes.append(outcome)
        found[precision] += [it.seconds for it in outcome.trained.history[skipped:]]
    rates = {name: 128 / statistics.median(took) for name, took in found.items()}
    return row_of(
        order,
        outcomes,
        name="resnet-50-precision",
        title="ResNet-50 on CIFAR-10: float32 and bfloat16",
        data=CIFAR_DATA,
        command="cloister init DIR --recipe cifar-10-resnet-50 --data cifar-10",
        figures=[
            *(
                Figure(name=f"images a second in {name}", value=rate, unit="/s")
                for name, rate in rates.items()
            ),
            Figure(
                name="bfloat16 to float32",
                value=rates["bfloat16"] / rates["float32"],
                unit="times",
            ),
        ],
    )


def plinius(order: Order) -> Row:
    """Plinius' network on MNIST, seed by seed."""
    source = order.data / "mnist"
    images = in_memory(*MNIST.deal(source, MNIST.workers, 7).values())
    outcomes = [
        run_recipe(
            "mnist",
            data=source,
            edit=partial(seeded, order=order, seed=seed),
        )
        for seed in order.seeds
    ]
    found = [100 * accuracy_of(it, DarknetClassification(), images) for it in outcomes]
    return row_of(
        order,
        outcomes,
        name="mnist-plinius",
        title="Plinius' network on MNIST",
        data="MNIST, its 10,000 test images: the first 8,000 to train, the last 2,000"
        " to test",
        command="cloister init DIR --recipe mnist --data mnist",
        figures=[
            Figure(
                name=f"accuracy, mean of {len(found)} seeds",
                value=statistics.mean(found),
                unit="%",
                reach=order.reach("at least 98.3"),
                ok=statistics.mean(found) >= 98.3,
            ),
            Figure(
                name="accuracy, worst seed",
                value=min(found),
                unit="%",
                reach=order.reach("at least 97.8"),
                ok=min(found) >= 97.8,
            ),
        ],
    )


def _short(recipe: Recipe, *, rounds: int, precision: Precision) -> Recipe:
    return replace(
        recipe.for_rounds(rounds), precision=precision, evaluate_every=rounds
    )


def _precision(name: str) -> Precision:
    """Returns what `cloister init` proposes for a recipe on this machine."""
    return order_for(Path("new"), data=None, name=name).recipe.precision
