"""The whole exception tree, by whose fault it is.

    CloisterError
    ├── ConfigError          the user's: a plan, a site file, an argument
    ├── VerificationError    the peer's: its evidence, certificate or warrant
    │   ├── AppraisalError   genuine, but not what the policy wants
    │   └── RefusedByPeer    the peer looked at us and said no
    ├── StorageError         the data's: missing, short, altered, sealed to others
    ├── ProtocolError        the message's: wrong, out of order, too late, too large
    │   └── PeerInTrouble    the peer cannot go on for now; it says nothing of us
    └── PlatformError        the host's: a port, a device, a kernel that cannot

Every malformed input of any kind ends in one of these. Calls out of order inside the
program are `RuntimeError`: an `except CloisterError` must never hide a bug.
"""

from __future__ import annotations

from typing_extensions import override


class CloisterError(Exception):
    """Base of all errors a user may meet; never raised itself.

    Args:
        what: What is wrong, in lower case, with public values only.
        code: Stable name for machines, words joined by dashes.
        expected: What would have been right.
        got: What came instead.
        remedy: What the reader can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        code: str,
        expected: str = "",
        got: str = "",
        remedy: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.code = code
        self.expected = expected
        self.got = got
        self.remedy = remedy

    @override
    def __str__(self) -> str:
        parts = [self.what]
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.got:
            parts.append(f"got {self.got}")
        line = "; ".join(parts)
        return f"{line}. {self.remedy}" if self.remedy else line


class ConfigError(CloisterError):
    """The user's own input cannot be used: a plan, a site file, an argument."""


class VerificationError(CloisterError):
    """A peer's evidence, certificate, warrant or signature does not hold.

    Args:
        what: See `CloisterError`.
        code: See `CloisterError`.
        expected: See `CloisterError`.
        got: See `CloisterError`.
        remedy: See `CloisterError`.
        step: Number of the step in `docs/spec/verification.md`; None outside it.
    """

    def __init__(
        self,
        what: str,
        *,
        code: str,
        expected: str = "",
        got: str = "",
        remedy: str = "",
        step: int | None = None,
    ) -> None:
        super().__init__(what, code=code, expected=expected, got=got, remedy=remedy)
        self.step = step


class AppraisalError(VerificationError):
    """The evidence is genuine, but it is not what the policy asks for."""


class RefusedByPeer(VerificationError):  # noqa: N818 - named for what happened
    """The peer examined this node and refused it; the message carries its reason."""


class StorageError(CloisterError):
    """Stored data is missing, truncated, altered, or sealed to somebody else."""


class ProtocolError(CloisterError):
    """A message is malformed, out of order, oversized, or did not come in time."""


class PeerInTrouble(ProtocolError):  # noqa: N818 - named for what happened
    """The peer cannot go on: its disk, its clock, its network. No word about us.

    Whoever is still admitted or warranted tries again.
    """


class PlatformError(CloisterError):
    """The machine cannot do what is needed: a port, a device, a kernel feature."""
