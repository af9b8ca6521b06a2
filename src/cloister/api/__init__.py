"""Cloister from Python: for notebooks and scripts.

    from cloister.api import Federation

    with Federation.local({"bob": bobs, "alice": alices}, task="task.py:Task") as both:
        trained = both.fit(rounds=50, batch_size=32, learning_rate=0.1)
    trained.metrics, trained.arrays

Everything happens as by the commands: parties consent, custodians warrant, nodes run
in processes of their own and attest each other, data and model are sealed. What is left
out is the people: `Federation.local` plays all parties on this machine, under simulated
platforms, and protects nothing. `Federation.from_plan` takes part in a real plan.
"""

from cloister.api.data import PartyData, open_sealed
from cloister.api.federation import Federation
from cloister.api.local import Settings
from cloister.api.trained import Round, Trained
from cloister.storage.formats import open_format
from cloister.workloads.dealing import deal_in_turn

__all__ = [
    "Federation",
    "PartyData",
    "Round",
    "Settings",
    "Trained",
    "deal_in_turn",
    "open_format",
    "open_sealed",
]
