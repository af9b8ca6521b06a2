"""Loads and guards the code that comes with a plan, from the bytes that were measured.

A file is read once, by whoever measures it; what is compiled here is what the evidence
speaks of. It is the model owner's code, so its failures are reported with the line they
came from, and with its own words only where nothing is confidential: an exception's
text may quote data, and logs lie on the host.

What a task or a strategy must be is said in `task_loading` and `strategy_loading`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from cloister.errors import CloisterError, ConfigError
from cloister.plan.values import Option

# Such a file is a page or two of code; its libraries are installed packages.
MAX_SOURCE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeKind:
    """What a file of the plan holds.

    Attributes:
        noun: What it is called; error codes begin with it.
        named_under: Where the plan names the file and its class.
        methods: What its class must have.
        advice: What helps whoever wrote a class without them.
    """

    noun: str
    named_under: str
    methods: tuple[str, ...]
    advice: str


def read_source(path: Path, kind: CodeKind) -> bytes:
    """Returns the bytes of a file, to be measured and then loaded.

    Raises:
        ConfigError: If the file is missing, unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            source = file.read(MAX_SOURCE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read the {kind.noun}",
            code=f"{kind.noun}-unreadable",
            expected=f"the plan's {kind.noun} file at {path}",
            got=error.strerror or "an error",
            remedy=f"It lies beside the plan and is named under {kind.named_under}"
            " file.",
        ) from error
    if len(source) > MAX_SOURCE_BYTES:
        raise ConfigError(
            f"the {kind.noun} {path} is too large",
            code=f"{kind.noun}-too-large",
            expected=f"at most {MAX_SOURCE_BYTES} bytes",
        )
    return source


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCode:
    """A file of the plan, as measured.

    Attributes:
        kind: What it holds.
        source: Its bytes.
        filename: Its name, for messages.
        simulated: Whether nothing is confidential, so that errors may be quoted.
    """

    kind: CodeKind
    source: bytes
    filename: str
    simulated: bool

    def make(self, class_name: str, options: Mapping[str, Option]) -> object:
        """Runs the file and returns an instance of its class.

        Args:
            class_name: The class to make.
            options: Its keyword arguments.

        Raises:
            ConfigError: If the file does not run, or the class is not of the kind.
        """
        noun = self.kind.noun
        module = ModuleType(f"cloister_{noun}")
        # Registered, because dataclasses and pickling of names look their module up.
        sys.modules[module.__name__] = module
        with self._guard("loading the file"):
            code = compile(self.source, self.filename, "exec")
            exec(code, module.__dict__)  # noqa: S102 - measured
        made = getattr(module, class_name, None)
        if not isinstance(made, type):
            raise ConfigError(
                f"{self.filename} has no class {class_name!r}",
                code=f"{noun}-class",
                expected=f"the class named under {self.kind.named_under} class",
                got=", ".join(
                    n for n, v in vars(module).items() if isinstance(v, type)
                ),
            )
        with self._guard(f"making {class_name}"):
            instance: object = made(**options)
        methods = self.kind.methods
        missing = [n for n in methods if not callable(getattr(instance, n, None))]
        if missing:
            raise ConfigError(
                f"{class_name} in {self.filename} is not a {noun}",
                code=f"{noun}-class",
                expected=f"the methods {', '.join(methods)}; {self.kind.advice}",
                got=f"none called {', '.join(missing)}",
            )
        return instance

    def _guard(self, doing: str) -> AbstractContextManager[None]:
        return guarded(self.kind, self.filename, doing, simulated=self.simulated)


@contextmanager
def guarded(
    kind: CodeKind, filename: str, doing: str, *, simulated: bool
) -> Iterator[None]:
    """Runs a plan's code; whatever it raises leaves as one of our errors.

    Belongs in the thread that runs the code: a `StopIteration` cannot pass through a
    future, and whoever waits for it would wait for ever.

    Args:
        kind: What the file holds.
        filename: Its name, for messages.
        doing: What it does, after "failed while".
        simulated: Whether nothing is confidential, so that errors may be quoted.

    Raises:
        ConfigError: In place of any exception that is not ours.
    """
    try:
        yield
    except CloisterError:
        raise
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == filename
        ]
        if isinstance(error, SyntaxError):
            lines.append(error.lineno)
        where = f" at line {lines[-1]}" if lines else ""
        words = f": {str(error)[:300]}" if simulated else ""
        raise ConfigError(
            f"{filename} failed while {doing}",
            code=f"{kind.noun}-failed",
            got=f"{type(error).__name__}{where}{words}",
            remedy=f"Mend the {kind.noun}; every party then measures it anew.",
        ) from error
