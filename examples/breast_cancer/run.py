"""Three hospitals learn to tell malignant tumours from benign ones.

    python examples/breast_cancer/run.py DIRECTORY

One sees mostly malignant tumours, one mostly benign ones, and one has few patients. The
task is one that Cloister brings, logistic regression; its rows are standardised by the
means and variances of all hospitals together, which no hospital knows.
"""

import sys
from pathlib import Path

from cloister.api import Federation
from cloister.workloads.breast_cancer import CLASSES, FEATURES, deal_breast_cancer
from cloister.workloads.tabular import TabularClassification


def main(directory: Path) -> None:
    """Runs the example in `directory`."""
    hospitals = deal_breast_cancer(("north", "south", "west"), seed=1)
    with Federation.local(
        hospitals,
        task=TabularClassification,
        options={"features": FEATURES, "classes": CLASSES},
        directory=directory,
    ) as federation:
        trained = federation.fit(
            rounds=30, local_steps=5, batch_size=16, learning_rate=0.3
        )
    print("simulated:", trained.simulated)
    print("accuracy:", round(trained.metrics["accuracy"], 4))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
