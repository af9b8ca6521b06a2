"""All rows of the results, in the page's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from results_images import (
    digits,
    plinius,
    resnet_50_precision,
    resnet_56,
    resnet_56_speed,
)
from results_order import Order
from results_row import Row
from results_tables import breast_cancer, secure_averaging

ROWS: Mapping[str, Callable[[Order], Row]] = {
    "digits": digits,
    "cifar-10": resnet_56,
    "cifar-10-speed": resnet_56_speed,
    "resnet-50-precision": resnet_50_precision,
    "mnist-plinius": plinius,
    "secure-averaging": secure_averaging,
    "breast-cancer": breast_cancer,
}
