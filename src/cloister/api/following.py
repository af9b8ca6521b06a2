"""Follows a run from its start to what it leaves, for a program that called for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from cloister.api.run_apart import run_apart
from cloister.api.trained import HistoryKeeper, Trained
from cloister.cli.auditing_here import audit_here
from cloister.cli.places import Place, custodians_beside, read_place
from cloister.cli.processes import Event
from cloister.cli.progress import SIMULATED_NOTICE, LineReporter, Unheld
from cloister.cli.running import check_may_run
from cloister.federation.auditing.report import AuditReport
from cloister.plan.plan import Plan
from cloister.storage.model_vault import OpenedModel, open_model, read_identity


class Following:
    """What a caller hears of a run.

    Args:
        on_event: Told of every event, in another thread.
        quiet: Whether nothing is printed.
    """

    def __init__(
        self, *, on_event: Callable[[Event], None] | None, quiet: bool
    ) -> None:
        self._on_event = on_event
        # A notebook has no terminal, and both have a place for lines.
        self._console = Console(stderr=True, highlight=False, quiet=quiet)

    def tell(self, line: str) -> None:
        """Prints a line about a longer step."""
        self._console.print(f"  {line}", soft_wrap=True)

    def run(
        self,
        plan: Plan,
        plan_path: Path,
        *,
        here: Sequence[str],
        identity: Path | None,
        fresh: bool,
    ) -> Trained:
        """Runs the nodes of `here` to their end; returns what they leave.

        From the state that they kept, if an earlier call, or command, was broken off.

        Args:
            plan: The plan.
            plan_path: Its file.
            here: Whose nodes; the server first, if it is among them.
            identity: Opens the model; None: the owner's beside the plan, if any.
            fresh: Whether the run begins anew instead.

        Raises:
            CloisterError: If the run is over, cannot begin anew, or a node fails.
            KeyboardInterrupt: If it was interrupted.
        """
        if plan.simulated:
            self._console.print(SIMULATED_NOTICE, style="yellow")
        role = plan.find_party(here[0]).role
        place = read_place(plan_path, role=role, party=here[0], site_path=None)
        check_may_run(place, fresh=fresh)
        history = HistoryKeeper(plan.server.name)
        shown = LineReporter(plan, self._console)
        listeners = [it for it in (history, shown, self._on_event) if it is not None]
        run_apart(
            plan, plan_path, reporter=_Listeners(listeners), only=here, fresh=fresh
        )
        return Trained(
            plan=plan,
            plan_path=plan_path,
            history=history.history(),
            run_directory=place.run_directory,
            model=_opened(place, identity),
            audit=_audited(place, plan_path),
        )


class _Listeners(Unheld):
    """Tells several listeners of each event."""

    def __init__(self, listeners: Sequence[Callable[[Event], None]]) -> None:
        self._listeners = listeners

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        for listener in self._listeners:
            listener(event)


def _opened(place: Place, identity: Path | None) -> OpenedModel | None:
    """Returns the model, if it and an identity for it are here.

    Raises:
        CloisterError: If the identity is not one of the model's recipients.
    """
    owner = identity or place.plan_directory / "owner" / "identity.txt"
    if not place.model_path.exists() or (identity is None and not owner.exists()):
        return None
    return open_model(place.model_path, identity=read_identity(owner))


def _audited(place: Place, plan_path: Path) -> AuditReport | None:
    """Returns what the log proves, if it is here, held against the custodians here.

    Raises:
        CloisterError: If it does not hold.
    """
    if not place.audit_path.exists() or not custodians_beside(plan_path):
        return None
    return audit_here(place.plan, plan_path, place.run_directory)
