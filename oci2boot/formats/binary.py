"""Binary records, declared once and in disk order."""

import struct
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Self, get_type_hints

from oci2boot.errors import FormatError

U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
I64 = Annotated[int, "q"]


@dataclass(frozen=True, slots=True)
class Record:
    """A fixed-size little-endian struct; a subclass lists its fields in disk order with the types above.

    `Annotated[bytes, "16s"]` is a field of 16 bytes; other lengths work the same way.
    """

    _structs: ClassVar[dict[type, struct.Struct]] = {}
    _names: ClassVar[dict[type, tuple[str, ...]]] = {}

    @classmethod
    def layout(cls) -> struct.Struct:
        known = Record._structs.get(cls)
        if known is None:
            hints = get_type_hints(cls, include_extras=True)
            codes = "".join(hints[field.name].__metadata__[0] for field in fields(cls))
            known = Record._structs[cls] = struct.Struct("<" + codes)
        return known

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> Self:
        """Read the record at `offset`; bytes that are not there are a `FormatError`."""
        layout = cls.layout()
        if offset < 0 or offset + layout.size > len(data):
            raise FormatError(f"{cls.__name__} at byte {offset} is cut short: {len(data)} bytes are there")
        values: tuple[Any, ...] = layout.unpack_from(data, offset)
        return cls(*values)

    def pack(self) -> bytes:
        names = Record._names.get(type(self))
        if names is None:  # fields() is slow, and writers pack records by the ten thousand
            names = Record._names[type(self)] = tuple(field.name for field in fields(self))
        return self.layout().pack(*[getattr(self, name) for name in names])
