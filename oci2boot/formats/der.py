"""Distinguished Encoding Rules, as far as signatures need them. ITU-T X.690.

The reader takes the one encoding that DER allows and no other, so what it accepts would be written back the same.
"""

from dataclasses import dataclass
from typing import Final, Self

from oci2boot.errors import FormatError

INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
NULL: Final = 0x05
OBJECT_IDENTIFIER: Final = 0x06
SEQUENCE: Final = 0x30
SET: Final = 0x31

MAX_LENGTH_BYTES: Final = 4


def context(number: int, *, constructed: bool = True) -> int:
    """Return the tag of a context-specific field, as in `[0] EXPLICIT`."""
    return 0x80 | (0x20 if constructed else 0) | number


def encode(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def integer(value: int) -> bytes:
    """Encode a number that is not negative."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(text: str) -> bytes:
    first, second, *others = map(int, text.split("."))
    content = bytearray()
    for number in (40 * first + second, *others):
        septets = [number & 0x7F]
        while number := number >> 7:
            septets.append(0x80 | number & 0x7F)
        content += bytes(reversed(septets))
    return encode(OBJECT_IDENTIFIER, bytes(content))


def set_of(*members: bytes) -> bytes:
    """Encode a set of encodings, in the order that DER gives them."""
    return encode(SET, *sorted(members))


@dataclass(frozen=True, slots=True)
class Value:
    tag: int
    content: bytes
    raw: bytes
    """The whole encoding, tag and length too."""

    def members(self) -> "Reader":
        return Reader(self.content)

    def with_tag(self, tag: int) -> bytes:
        """Return the encoding under another tag."""
        return bytes((tag,)) + self.raw[1:]


@dataclass(slots=True)
class Reader:
    """Takes one value after the other."""

    data: bytes
    at: int = 0

    @classmethod
    def within(cls, data: bytes, tag: int, what: str) -> Self:
        """Read the members of the one value that `data` is."""
        reader = cls(data)
        value = reader.take(tag, what)
        reader.end(what)
        return cls(value.content)

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def next_is(self, tag: int) -> bool:
        return self.more and self.data[self.at] == tag

    def take(self, tag: int, what: str) -> Value:
        """Return the next value, which is to have this tag; `what` names it in the error."""
        found = self.take_any(what)
        if found.tag != tag:
            raise FormatError(f"{what} has the tag {found.tag:#04x}, not {tag:#04x}")
        return found

    def take_any(self, what: str) -> Value:
        start, data = self.at, self.data
        if start + 2 > len(data):
            raise FormatError(f"{what} is missing or cut short")
        tag, size, body = data[start], data[start + 1], start + 2
        if tag & 0x1F == 0x1F:
            raise FormatError(f"{what} has a tag of several bytes")
        if size & 0x80:
            count = size & 0x7F
            length = data[body : body + count]
            size = int.from_bytes(length, "big")
            if not 0 < count <= MAX_LENGTH_BYTES or len(length) < count or length[0] == 0 or size < 0x80:
                raise FormatError(f"{what} has a length that DER does not allow")
            body += count
        end = body + size
        if end > len(data):
            raise FormatError(f"{what} is cut short")
        self.at = end
        return Value(tag, data[body:end], data[start:end])

    def expect(self, encoding: bytes, what: str) -> None:
        """Take exactly these bytes."""
        if self.data[self.at : self.at + len(encoding)] != encoding:
            raise FormatError(f"{what} is not the one expected")
        self.at += len(encoding)

    def end(self, what: str) -> None:
        if self.more:
            raise FormatError(f"{what} is followed by {len(self.data) - self.at} bytes that do not belong there")
