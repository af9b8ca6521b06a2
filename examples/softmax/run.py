"""Three hospitals train a softmax regression, written in plain NumPy, on digits.

    python examples/softmax/run.py DIRECTORY

makes a simulated deployment in DIRECTORY with the task beside this file, seals each
hospital's digits, signs the plan for all parties, runs their custodians and nodes on
this machine, opens the sealed model as its owner, and prints what it scores.
"""

import sys
from pathlib import Path

from cloister.api import Federation, deal_in_turn
from cloister.workloads.digits import DigitStream

HOSPITALS = ("north", "south", "west")
TASK = Path(__file__).with_name("task.py")


def main(directory: Path) -> None:
    """Runs the example in `directory`."""
    digits = DigitStream(seed=7, image_shape=(192,))
    dealt = deal_in_turn(digits, len(HOSPITALS))
    with Federation.local(
        dict(zip(HOSPITALS, dealt, strict=True)),
        task=f"{TASK}:Softmax",
        options={"features": 192, "classes": 10},
        directory=directory,
    ) as federation:
        trained = federation.fit(
            rounds=150, batch_size=32, learning_rate=0.3, momentum=0.9
        )
    print("simulated:", trained.simulated)
    print("accuracy:", trained.metrics["accuracy"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
