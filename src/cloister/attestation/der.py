"""A small strict DER reader, and the few writers the simulated platform needs.

Follows ITU-T X.690 section 10: definite lengths in their shortest form, short tags,
and nothing after the value. It exists for what pyca/cryptography leaves opaque, such
as Intel's SGX extension; certificates themselves are read by that library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cloister.errors import VerificationError

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
ENUMERATED = 0x0A
UTF8_STRING = 0x0C
PRINTABLE_STRING = 0x13
SEQUENCE = 0x30
SET = 0x31

_HIGH_TAG = 0x1F
_LONG_LENGTH = 0x80
# Three length octets reach 16 MiB, far above any value we accept.
_MAX_LENGTH_OCTETS = 3
# The longest identifier in use here has 12 content octets.
_MAX_OID_OCTETS = 64


# Serial and revocation list numbers have at most 21 octets, signature halves 33; an
# integer without end could not even be written out in an error.
MAX_INTEGER_BYTES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One tag with its content; nested elements are read only when asked for."""

    tag: int
    content: bytes

    def children(self, tag: int = SEQUENCE) -> tuple[Element, ...]:
        """Returns the elements of a SEQUENCE, or with another tag of a SET.

        Raises:
            VerificationError: If this has another tag, or its content is malformed.
        """
        return tuple(_elements(self._content_of(tag)))

    def integer(self) -> int:
        """Returns an INTEGER's value.

        Raises:
            VerificationError: If this is no INTEGER in its shortest form.
        """
        return _integer(self._content_of(INTEGER))

    def enumerated(self) -> int:
        """Returns an ENUMERATED's value.

        Raises:
            VerificationError: If this is no ENUMERATED in its shortest form.
        """
        return _integer(self._content_of(ENUMERATED))

    def octets(self) -> bytes:
        """Returns an OCTET STRING's bytes.

        Raises:
            VerificationError: If this is no OCTET STRING.
        """
        return self._content_of(OCTET_STRING)

    def bit_string(self) -> bytes:
        """Returns a BIT STRING's octets, the first bit highest.

        Raises:
            VerificationError: If this is no BIT STRING, or unused bits are not zero.
        """
        content = self._content_of(BIT_STRING)
        unused = content[0] if content else 8
        octets = content[1:]
        last = octets[-1] if octets else 0
        if unused > 7 or (unused and not octets) or last & ((1 << unused) - 1):
            raise _malformed("BIT STRING has a wrong end")
        return octets

    def text(self) -> str:
        """Returns a UTF8String's or a PrintableString's characters.

        Raises:
            VerificationError: If this is neither, not well encoded, or not printable.
        """
        printable = self.tag == PRINTABLE_STRING
        content = self._content_of(PRINTABLE_STRING if printable else UTF8_STRING)
        try:
            text = content.decode("ascii" if printable else "utf-8")
        except UnicodeDecodeError as error:
            raise _malformed("string is not well encoded") from error
        # A name from a stranger's certificate ends up on somebody's terminal.
        if not text.isprintable():
            raise _malformed("string has control characters")
        return text

    def boolean(self) -> bool:
        """Returns a BOOLEAN's value.

        Raises:
            VerificationError: If this is no BOOLEAN of exactly 00 or FF.
        """
        content = self._content_of(BOOLEAN)
        if content not in {b"\x00", b"\xff"}:
            raise _malformed("BOOLEAN is neither 00 nor FF")
        return content == b"\xff"

    def oid(self) -> str:
        """Returns an OBJECT IDENTIFIER in dotted form.

        Raises:
            VerificationError: If this is no OBJECT IDENTIFIER in its shortest form.
        """
        content = self._content_of(OBJECT_IDENTIFIER)
        if not content or len(content) > _MAX_OID_OCTETS or content[-1] & 0x80:
            raise _malformed("OBJECT IDENTIFIER has no end")
        arcs: list[int] = []
        arc = 0
        for octet in content:
            if arc == 0 and octet == 0x80:
                raise _malformed("OBJECT IDENTIFIER is not in its shortest form")
            arc = arc << 7 | octet & 0x7F
            if not octet & 0x80:
                arcs.append(arc)
                arc = 0
        first = min(arcs[0] // 40, 2)
        return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))

    def _content_of(self, tag: int) -> bytes:
        if self.tag != tag:
            raise _malformed(f"expected tag {tag:#04x}, got {self.tag:#04x}")
        return self.content


def parse_der(unverified_der: bytes) -> Element:
    """Returns the one element that fills `unverified_der` exactly.

    Raises:
        VerificationError: If the bytes are not exactly one strict DER element.
    """
    element, end = _element_at(unverified_der, 0)
    if end != len(unverified_der):
        raise _malformed(f"{len(unverified_der) - end} bytes follow the value")
    return element


def encode(tag: int, content: bytes) -> bytes:
    """Returns one element in DER."""
    if len(content) < _LONG_LENGTH:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, _LONG_LENGTH | len(length)]) + length + content


def encode_sequence(*elements: bytes) -> bytes:
    """Returns a SEQUENCE of elements that are encoded already."""
    return encode(SEQUENCE, b"".join(elements))


def encode_integer(value: int, *, tag: int = INTEGER) -> bytes:
    """Returns an INTEGER, or with another tag an ENUMERATED, that is not negative."""
    return encode(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encode_oid(dotted: str) -> bytes:
    """Returns an OBJECT IDENTIFIER."""
    first, second, *others = (int(arc) for arc in dotted.split("."))
    return encode(
        OBJECT_IDENTIFIER,
        b"".join(_base128(arc) for arc in (40 * first + second, *others)),
    )


def encode_boolean(*, value: bool) -> bytes:
    """Returns a BOOLEAN."""
    return encode(BOOLEAN, b"\xff" if value else b"\x00")


def _elements(content: bytes) -> Iterator[Element]:
    position = 0
    while position < len(content):
        element, position = _element_at(content, position)
        yield element


def _element_at(data: bytes, start: int) -> tuple[Element, int]:
    """Reads one element; returns it and the position after it."""
    header = data[start : start + 2]
    if len(header) < 2:
        raise _malformed("ends inside a header")
    tag, length = header
    if tag & _HIGH_TAG == _HIGH_TAG:
        raise _malformed("tag is longer than one octet")
    content_start = start + 2
    if length & _LONG_LENGTH:
        count = length & 0x7F
        octets = data[content_start : content_start + count]
        if not 1 <= count <= _MAX_LENGTH_OCTETS or len(octets) < count:
            raise _malformed("length is indefinite, too long, or cut off")
        length = int.from_bytes(octets, "big")
        if octets[0] == 0 or length < _LONG_LENGTH:
            raise _malformed("length is not in its shortest form")
        content_start += count
    end = content_start + length
    if end > len(data):
        raise _malformed("ends inside a value")
    return Element(tag=tag, content=data[content_start:end]), end


def _integer(content: bytes) -> int:
    if not content:
        raise _malformed("integer has no octets")
    if len(content) > MAX_INTEGER_BYTES:
        raise _malformed(f"integer is over {MAX_INTEGER_BYTES} octets")
    if len(content) > 1 and (
        (content[0] == 0x00 and content[1] < 0x80)
        or (content[0] == 0xFF and content[1] >= 0x80)
    ):
        raise _malformed("integer is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)


def _base128(arc: int) -> bytes:
    octets = [arc & 0x7F]
    while arc := arc >> 7:
        octets.append(0x80 | arc & 0x7F)
    return bytes(reversed(octets))


def _malformed(why: str) -> VerificationError:
    return VerificationError(
        f"not strict DER: {why}",
        code="der-malformed",
        remedy="the certificate is damaged or made by a tool that is not strict",
    )
