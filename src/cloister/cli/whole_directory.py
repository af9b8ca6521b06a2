"""A directory that appears under its name whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister.errors import ConfigError, StorageError


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Yields a draft beside `directory`; what the body wrote takes its place then.

    Its name is on the disk when this ends: a key that was told of must not be lost.
    Only its owner may look inside. If the body raises, nothing is left.

    Args:
        directory: Where; must not exist, or be empty.

    Raises:
        ConfigError: If it is in use.
        StorageError: If it cannot be written; also if the body raises `OSError`.
    """
    target = directory.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(
            f"{directory} is in use",
            code="directory-in-use",
            expected="a new or empty directory",
            remedy="Choose another, or remove it.",
        )
    made = [it for it in target.parents if not it.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _cannot_write(directory, error) from error
    place = draft
    try:
        yield draft
        # mkdtemp's 0700 stays: there are keys inside.
        place = draft.replace(target)
        # The names of parents that were not there before, too.
        for parent in (target.parent, *(it.parent for it in made)):
            _sync(parent)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise _cannot_write(directory, error) from error
    except BaseException:
        # Also on Ctrl-C: there are keys in the draft. Raised again below.
        shutil.rmtree(place, ignore_errors=True)
        raise


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(directory: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write the directory {directory}",
        code="directory-unwritable",
        got=error.strerror or "an error",
    )
