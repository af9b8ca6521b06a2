"""Device files that behave as the kernel's and Gramine's do, in a real directory.

A file that is made when it is read is a named pipe, whose writer waits for a reader to
open it and answers then, from the state that the directory has at that moment.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path


class ReadFile:
    """A file whose content is made for each reader.

    Args:
        path: Where it is made.
        content: Makes the content; called when somebody opens the file.
    """

    def __init__(self, path: Path, content: Callable[[], bytes]) -> None:
        self._path = path
        self._content = content
        self._ended = False
        os.mkfifo(path)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the writer; the file stays, and would block."""
        self._ended = True
        # A reader, until the writer has met it, lets it go on and find the end.
        reader = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK)
        self._thread.join()
        os.close(reader)

    def _serve(self) -> None:
        while True:
            with self._path.open("wb", buffering=0) as pipe:
                if self._ended:
                    return
                # The next reader gets a pipe of its own, or it would read on in this.
                fresh = self._path.with_name(f".{self._path.name}.fresh")
                os.mkfifo(fresh)
                fresh.replace(self._path)
                with contextlib.suppress(BrokenPipeError):
                    pipe.write(self._content())


class GramineDirectory:
    """Gramine's ``/dev/attestation`` for one process.

    Args:
        path: Where it is made.
        quote: Makes a quote over report data.
        attestation_type: What the manifest asked for.
    """

    def __init__(
        self,
        path: Path,
        quote: Callable[[bytes], bytes],
        *,
        attestation_type: str = "dcap",
    ) -> None:
        self.path = path
        self._quote = quote
        (path / "keys").mkdir(parents=True)
        (path / "attestation_type").write_text(attestation_type)
        self._report_data = path / "user_report_data"
        self._report_data.write_bytes(bytes(64))
        self._file = ReadFile(
            path / "quote", lambda: self._quote(self._report_data.read_bytes())
        )

    def close(self) -> None:
        self._file.close()


class TsmReports:
    """The kernel's ``tsm/report``: `make` and `remove` are its mkdir and rmdir.

    Args:
        path: Where entries are made.
        quote: Makes a quote over report data.
        provider: What the kernel calls the maker of its quotes.
        rivals: How often, for each entry to come, somebody else writes to it between
            our write and our read.
    """

    def __init__(
        self,
        path: Path,
        quote: Callable[[bytes], bytes],
        *,
        provider: str = "tdx_guest",
        rivals: tuple[int, ...] = (),
    ) -> None:
        self.path = path
        self.made = 0
        self._quote = quote
        self._provider = provider
        self._rivals = list(rivals)
        self._files: dict[Path, ReadFile] = {}
        path.mkdir(parents=True)

    def make(self, entry: Path) -> None:
        entry.mkdir()
        self.made += 1
        rivals = self._rivals.pop(0) if self._rivals else 0
        (entry / "provider").write_text(f"{self._provider}\n")
        (entry / "generation").write_text("0\n")
        (entry / "inblob").touch()

        def outblob() -> bytes:
            (entry / "generation").write_text(f"{1 + rivals}\n")
            return self._quote((entry / "inblob").read_bytes())

        self._files[entry] = ReadFile(entry / "outblob", outblob)

    def remove(self, entry: Path) -> None:
        self._files.pop(entry).close()
        # configfs removes an entry together with its files.
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
