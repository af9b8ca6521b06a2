"""A federation as one object: made here for a trial, or taken from a plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from cloister.api.data import PartyData
from cloister.api.following import Following
from cloister.api.local import LocalParties, Settings, check_settings
from cloister.api.task_file import TaskLike
from cloister.api.trained import Trained
from cloister.cli.places import default_site_path
from cloister.cli.processes import Event
from cloister.errors import ConfigError
from cloister.plan.plan import Plan, read_plan
from cloister.plan.values import Option


class Federation:
    """Named parties who train one model, of which nobody sees another's data.

    Made by `local` or `from_plan`; a context that removes what was temporary.
    """

    def __init__(self, origin: LocalParties | Path) -> None:
        self._origin = origin

    @classmethod
    def local(
        cls,
        data: Mapping[str, PartyData],
        *,
        task: TaskLike,
        options: Mapping[str, Option] | None = None,
        outside: Collection[str] = (),
        held_out: float = 0.2,
        directory: Path | str | None = None,
    ) -> Federation:
        """Returns a federation of parties that all are on this machine, simulated.

        Nothing of it is confidential: whoever runs it has everybody's data and keys.

        Args:
            data: Each worker's records, by its name: a directory in a known format
                (`open_format` reads others), arrays by field, arrays by field by
                split (``train``, ``held-out``), or a stream of records.
            task: A class that lies in a file, or ``"FILE:CLASS"``. The file alone is
                what nodes measure and run.
            options: Keyword arguments of the class.
            outside: Workers on their owners' own machines: admitted by their party's
                key, without evidence. At least two workers must take part then.
            held_out: Of arrays that name no split, which share is held out; the last.
            directory: Where deployments go, one a `fit`; a new or empty directory.
                None for a temporary one, removed when the context ends.

        Raises:
            CloisterError: If the task does not load, or data does not fit it.
        """
        return cls(
            LocalParties.gather(
                data,
                task=task,
                options=options or {},
                outside=outside,
                held_out=held_out,
                directory=directory,
            )
        )

    @classmethod
    def from_plan(cls, plan_path: Path | str) -> Federation:
        """Returns the federation of a plan, whose other nodes may run elsewhere.

        Of this machine are the parties whose site files lie where `cloister init` puts
        them, ``parties/NAME/site.toml`` beside the plan; and of custodians those in
        ``custodians/NAME/``.

        Raises:
            ConfigError: If the plan does not fit, or no node of it runs here.
        """
        path = Path(plan_path)
        plan = read_plan(path)
        if not _here(plan, path):
            raise ConfigError(
                "no node of this plan runs here",
                code="site-missing",
                expected=f"a site file such as"
                f" {default_site_path(path, plan.server.name)}",
                got="none",
                remedy="Put this machine's site files there, or start a node with"
                " --site.",
            )
        return cls(path)

    def fit(
        self,
        *,
        identity: Path | str | None = None,
        on_event: Callable[[Event], None] | None = None,
        quiet: bool = False,
        fresh: bool = False,
        **settings: Unpack[Settings],
    ) -> Trained:
        """Trains: all nodes of this machine run to the end of training.

        The run of a plan that was broken off goes on from the last state that its
        server kept. What was trained before is in the model then, and not in the
        history.

        Args:
            identity: File of an identity that opens the model; None: the owner's, where
                `cloister init` puts it.
            on_event: Told of every event of every process here, in another thread.
            quiet: Whether to print nothing.
            fresh: Whether the run of a plan begins anew; what is there is set aside
                under a dated name. Each `fit` of a local federation does anyway.
            settings: How a local federation trains: it writes a plan with them, and
                signs it for everybody. The plan of `from_plan` says all of that itself.

        Raises:
            CloisterError: If the settings do not fit, a party did not sign, or a node
                failed; in the words of the first that did.
            KeyboardInterrupt: If it was interrupted; all nodes here have stopped then.
            TypeError: If a setting is unknown.
        """
        following = Following(on_event=on_event, quiet=quiet)
        checked = check_settings(settings)
        if isinstance(self._origin, LocalParties):
            _check_no_fresh(fresh=fresh)
            plan_path = self._origin.make(checked, tell=following.tell)
        else:
            plan_path = _check_unset(checked, self._origin)
        plan = read_plan(plan_path)
        return following.run(
            plan,
            plan_path,
            here=_here(plan, plan_path),
            identity=None if identity is None else Path(identity),
            fresh=fresh,
        )

    @property
    def directory(self) -> Path:
        """Where deployments and runs lie; of a plan, where the plan lies."""
        if isinstance(self._origin, LocalParties):
            return self._origin.directory
        return self._origin.parent

    def close(self) -> None:
        """Removes a temporary directory, with the runs in it."""
        if isinstance(self._origin, LocalParties):
            self._origin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _here(plan: Plan, plan_path: Path) -> tuple[str, ...]:
    """Returns whose nodes run on this machine, the server first if it does."""
    return tuple(
        party.name
        for party in (plan.server, *plan.workers)
        if default_site_path(plan_path, party.name).exists()
    )


def _check_no_fresh(*, fresh: bool) -> None:
    if fresh:
        raise ConfigError(
            "each fit of a local federation is a run of its own",
            code="settings-unused",
            expected="fresh for the plan of `from_plan` alone",
            got="fresh=True",
            remedy="Leave it out.",
        )


def _check_unset(settings: Settings, plan_path: Path) -> Path:
    if settings:
        raise ConfigError(
            "settings of the training would be ignored",
            code="settings-unused",
            expected=f"what {plan_path.name} says, which all parties signed",
            got=", ".join(settings),
            remedy="Leave them out, or have all parties sign another plan.",
        )
    return plan_path
