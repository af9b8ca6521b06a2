"""The state of a run, as its nodes' events tell it."""

from __future__ import annotations

from cloister.cli.processes import Event
from cloister.plan.plan import Plan

_STATES = {
    "node-measured": "measured",
    "node-unmeasured": "not measured",
    "waiting-for-custodian": "waiting for its custodian",
    "warranted": "warranted",
    "waiting-for-share": "waiting for a share of its key",
    "waiting-for-server": "waiting for the server",
    "listening": "listening",
    "server-attested": "attested the server",
    "waiting-for-predecessor": "waiting for the node before it to end",
    "server-lost": "lost the server",
    "state-resumed": "resumed",
    "restarted": "was killed; started again",
    "round": "training",
    "finished": "finished",
    "model-sealed": "sealed the model",
    "failed": "failed",
    "interrupted": "stopped",
}


class RunView:
    """The state of a run, built from the nodes' events."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.parties: dict[str, dict[str, str]] = {
            p.name: {"role": p.role, "tee": "", "state": "starting", "attested": ""}
            for p in (plan.server, *plan.workers)
        }
        self._attested_by: set[str] = set()
        self._workers = len(plan.workers)
        self._server = plan.server.name
        self.round = 0
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.evaluated_round = 0
        self.bytes_moved = 0

    def take(self, event: Event) -> None:
        """Takes one event of one node."""
        name, kind = str(event.get("party")), str(event.get("event"))
        row = self.parties.get(name)
        if row is None or is_custodian(event):
            return
        if kind == "peer-admitted":
            admitted = self.parties.get(str(event.get("peer")))
            if admitted is not None:
                by_key = event.get("admit") == "identity"
                admitted["attested"] = "no, by its key" if by_key else "by " + name
            return
        if kind == "server-attested":
            self._attested_by.add(name)
            met = len(self._attested_by)
            self.parties[self._server]["attested"] = (
                "by all workers"
                if met == self._workers
                else f"by {met} of {self._workers} workers"
            )
        if kind == "node-measured":
            simulated = " (simulated)" if event.get("simulated") else ""
            row["tee"] = f"{event.get('tee')}{simulated}"
        if kind == "node-unmeasured":
            row["tee"] = "none"
        if kind != "warranted" or row["state"] != "training":  # a warrant is renewed
            row["state"] = _STATES.get(kind, row["state"])
        if row["role"] == "server":
            self._take_training(kind, event)

    def _take_training(self, kind: str, event: Event) -> None:
        if kind == "state-resumed":
            self.round = int(_number(event, "round"))
        elif kind == "round":
            self.round = int(_number(event, "round"))
            loss = event.get("loss")
            # Where too few took part, nobody is told theirs.
            self.loss = loss if isinstance(loss, int | float) else None
            self.bytes_moved = int(
                _number(event, "bytes_received") + _number(event, "bytes_sent")
            )
        elif kind == "evaluation":
            metrics = event.get("metrics")
            if isinstance(metrics, dict):
                self.metrics = {str(k): float(v) for k, v in metrics.items()}
                self.evaluated_round = int(_number(event, "round"))

    def line(self) -> str:
        """Returns the state of training in one line."""
        parts = [f"round {self.round}/{self.plan.training.rounds}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if "accuracy" in self.metrics:
            parts.append(
                f"held-out accuracy {self.metrics['accuracy']:.4f}"
                f" (round {self.evaluated_round})"
            )
        parts.append(f"{self.bytes_moved / 1e6:.0f} MB moved")
        return "  ".join(parts)


def is_custodian(event: Event) -> bool:
    """Returns whether an event is a custodian's; its node tells what matters of it."""
    return event.get("service") == "custodian"


def _number(event: Event, key: str) -> float:
    value = event.get(key)
    return value if isinstance(value, int | float) else 0.0
