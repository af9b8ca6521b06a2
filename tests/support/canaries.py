"""Secrets that a test knows, searched for in every form that a leak would have.

Eight bytes of a secret are enough: its beginning, its middle or its end. So a form that
was cut off, as this program likes to show hashes, is found as well. What is searched is
looked at more than once: without line breaks, unescaped, and with all base64 in it
decoded, for an audit log is base64.
"""

from __future__ import annotations

import base64
import json
import re
import traceback
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import structlog

from cloister.cli.output import error_object
from cloister.errors import CloisterError

WINDOW = 8
_DIGITS = 20  # of a secret as one decimal number, from either end
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_IDENTITY = "AGE-SECRET-KEY-1"
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}")
_HEX_NOISE = re.compile(rb"0x|\\x|[\s:,;-]")
_LIST_NOISE = re.compile(rb"[\s,\[\]()]+")


class Canaries:
    """Secrets by name, and the search for them."""

    def __init__(self) -> None:
        self._plain: dict[bytes, str] = {}
        self._hex: dict[bytes, str] = {}
        self._lists: dict[bytes, str] = {}

    def plant(self, name: str, secret: bytes) -> bytes:
        """Looks for a secret from now on; returns it."""
        for at in {0, (len(secret) - WINDOW) // 2, len(secret) - WINDOW}:
            window = secret[at : at + WINDOW]
            assert len(window) == WINDOW, f"{name} is too short to be told from noise"
            self._plain |= dict.fromkeys(_plain_forms(window), name)
            self._hex[window.hex().encode()] = name
            self._lists[b",".join(b"%d" % byte for byte in window)] = name
        for ordered in (secret, secret[::-1]):
            digits = str(int.from_bytes(ordered)).encode()
            if len(digits) >= _DIGITS:
                self._plain |= {digits[:_DIGITS]: name, digits[-_DIGITS:]: name}
        return secret

    def plant_identity(self, name: str, identity: str) -> str:
        """Looks for an age identity: its text, and the key that the text spells."""
        assert identity.startswith(_IDENTITY)
        text = identity.removeprefix(_IDENTITY)
        self.plant(name, text.encode())
        self.plant(name, text.lower().encode())
        self.plant(name, _bech32_bytes(text.lower()))
        return identity

    def names(self) -> set[str]:
        """Returns what is looked for."""
        return set(self._hex.values())

    def found_in(self, content: bytes | str) -> set[str]:
        """Returns the names of the secrets that are in there, in whatever form."""
        if isinstance(content, str):
            content = content.encode(errors="surrogateescape")
        found: set[str] = set()
        for layer in _layers(content):
            found |= _names_in(layer, self._plain)
            found |= _names_in(_HEX_NOISE.sub(b"", layer).lower(), self._hex)
            found |= _names_in(_LIST_NOISE.sub(b",", layer), self._lists)
        return found

    def found_below(self, directory: Path) -> dict[str, set[str]]:
        """Returns which secrets lie in which file, by its path below a directory."""
        found = {
            str(path.relative_to(directory)): self.found_in(path.read_bytes())
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        return {path: names for path, names in found.items() if names}


def said_by(error: BaseException) -> Iterator[str]:
    """Yields all that can be had of an error without looking into stack frames.

    Of itself, and of whatever it hides: its causes and contexts, their arguments and
    attributes.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        it = waiting.pop()
        if id(it) in seen:
            continue
        seen.add(id(it))
        yield from (str(it), repr(it), repr(it.args), repr(vars(it)))
        # What a UnicodeDecodeError carries stands in no dictionary.
        for name in ("object", "doc", "msg", "reason", "strerror"):
            yield repr(getattr(it, name, ""))
        waiting += [e for e in (it.__cause__, it.__context__) if e is not None]
        if isinstance(it, BaseExceptionGroup):
            waiting += it.exceptions


def shown_of(error: CloisterError) -> str:
    """Returns all that anybody may show of an error of ours, and of its causes."""
    log = structlog.processors.JSONRenderer()
    return "\n".join(
        [
            *said_by(error),
            *traceback.format_exception(error),
            json.dumps(error_object(error)),
            str(log(None, "error", {"event": "failed", "error": error})),
            str(structlog.processors.format_exc_info(None, "", {"exc_info": error})),
        ]
    )


def _plain_forms(window: bytes) -> set[bytes]:
    text = window.decode("latin-1")
    shown = repr(window)[2:-1]
    forms = {
        window,
        text.encode(),
        json.dumps(text)[1:-1].encode(),
        shown.encode(),
        shown.replace("\\'", "'").encode(),
        shown.replace("'", "\\'").encode(),
        urllib.parse.quote_from_bytes(window).encode(),
    }
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms |= set(_base64_forms(window, encode))
    return forms


def _base64_forms(window: bytes, encode: Callable[[bytes], bytes]) -> Iterable[bytes]:
    """Returns what a window is in base64, wherever it begins in what was encoded.

    Without the characters at both ends that depend on what is beside it.
    """
    for offset in range(3):
        encoded = encode(bytes(offset) + window)
        first, last = -(-offset * 8 // 6), (offset + len(window)) * 8 // 6
        yield encoded[first:last]


def _names_in(content: bytes, needles: dict[bytes, str]) -> set[str]:
    return {name for needle, name in needles.items() if needle in content}


def _layers(content: bytes, *, deep: int = 2) -> Iterator[bytes]:
    yield content
    joined = re.sub(rb"\\n|[\r\n]", b"", content)
    yield joined
    if b"\\\\" in content:
        yield content.replace(b"\\\\", b"\\")
    if deep:
        # Line by line, and across lines, as in PEM.
        runs = {*_BASE64.findall(content), *_BASE64.findall(joined)}
        decoded = b"\0".join(_decoded(run) for run in runs)
        if decoded:
            yield from _layers(decoded, deep=deep - 1)


def _decoded(run: bytes) -> bytes:
    usual = run.translate(bytes.maketrans(b"-_", b"+/"))
    return base64.b64decode(usual[: len(usual) // 4 * 4])


def _bech32_bytes(text: str) -> bytes:
    """Returns the bytes of a bech32 data part; its six characters of checksum go."""
    bits = 0
    for character in text[:-6]:
        bits = bits << 5 | _BECH32.index(character)
    spare = (len(text) - 6) * 5 % 8
    return (bits >> spare).to_bytes((len(text) - 6) * 5 // 8)
