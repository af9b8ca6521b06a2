"""Two owners train one model, and neither shows the other, or anybody, a record.

    python examples/secure_averaging/run.py DIRECTORY

They stay outside, on machines of their own; only the aggregator is attested, and they
talk TLS straight to it. Each prints its own loss, on its own machine; what both get is
the mean of their models. Data, first weights and so all numbers are those of PySyft's
example inside Graphene-SGX, which this supersedes.

Of a mean of two, each can work out the other's model: it knows its own. Where that must
not be, let three take part, or attest the owners' nodes as well.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from cloister.api import Federation, PartyData

HERE = Path(__file__).parent
INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
TARGET = INPUTS[:, :1]


def records(rows: slice) -> PartyData:
    """Returns an owner's records: so few that they serve for both splits."""
    columns = {"inputs": INPUTS[rows], "target": TARGET[rows]}
    return {"train": columns, "held-out": columns}


def main(directory: Path) -> None:
    """Runs the example in `directory`."""
    owners = {"bob": records(slice(0, 2)), "alice": records(slice(2, 4))}
    task = f"{HERE / 'task.py'}:SecureAveraging"
    with Federation.local(
        owners, task=task, outside=owners, directory=directory
    ) as federation:
        trained = federation.fit(
            rounds=10,
            local_steps=5,
            batch_size=2,
            learning_rate=0.1,
            initial=load_file(HERE / "start.safetensors"),
        )
    weight, bias = (trained.arrays[it].astype(np.float32) for it in ("weight", "bias"))
    print("simulated:", trained.simulated)
    print("predictions:", *np.round(INPUTS @ weight[0] + bias, 4))
    print("loss:", round(len(INPUTS) * trained.metrics["loss"], 4))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
