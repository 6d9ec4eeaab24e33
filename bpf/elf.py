"""Compiled BPF objects: their programs, maps and licence, read from ELF bytes.

Only what a relocatable object of clang's needs: sections, symbols, and references of instructions to maps. A map is
a symbol in section `maps`, five numbers behind each other (type, sizes of key and value, entries, flags); a program is
a section of its own. No input or output here. Source: elf(5); LLVM, "BPF ELF relocations".
"""

import struct
from dataclasses import dataclass

_MAGIC = b"\x7fELF\x02\x01"
_MACHINE_BPF = 247
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQ")
_MAP = struct.Struct("<5I")
_PROGBITS, _SYMTAB, _REL, _NOBITS = 1, 2, 9, 8
_EXECUTABLE = 4
_LOAD_64 = 0x18
_MAP_REFERENCE = 1


class ObjectError(Exception):
    """The bytes are no object that this reader knows."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """A map as the object declares it; sizes in bytes."""

    name: str
    kind: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Program:
    """A program's instructions, 8 bytes each; `references` are (instruction, map's name)."""

    name: str
    instructions: bytes
    references: tuple[tuple[int, str], ...]

    def linked(self, descriptors: dict[str, int]) -> bytes:
        """The instructions with the maps' descriptors in them."""
        code = bytearray(self.instructions)
        for index, name in self.references:
            at = index * 8
            # The source register says that the number is a map's descriptor.
            code[at + 1] = (code[at + 1] & 0x0F) | _MAP_REFERENCE << 4
            struct.pack_into("<i", code, at + 4, descriptors[name])
        return bytes(code)


@dataclass(frozen=True, slots=True)
class Object:
    """All that an object holds."""

    programs: dict[str, Program]
    maps: dict[str, MapSpec]
    licence: str


@dataclass(frozen=True, slots=True)
class _Section:
    name: str
    kind: int
    flags: int
    content: bytes
    link: int
    info: int


def parse(data: bytes) -> Object:
    """Read an object. Raises ObjectError."""
    try:
        return _parse(data)
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ObjectError(f"the object is damaged: {error}") from error


def _parse(data: bytes) -> Object:
    if data[:6] != _MAGIC:
        raise ObjectError("this is no 64-bit little-endian ELF object")
    sections = _sections(data)
    table = next((section for section in sections if section.kind == _SYMTAB), None)
    if table is None:
        raise ObjectError("the object has no symbols")
    symbols = _symbols(table, sections[table.link].content)
    maps: dict[str, MapSpec] = {}
    for name, place, offset in symbols:
        if place < len(sections) and sections[place].name == "maps" and name:
            maps[name] = MapSpec(name, *_MAP.unpack_from(sections[place].content, offset))
    programs = {}
    for number, section in enumerate(sections):
        if section.kind == _PROGBITS and section.flags & _EXECUTABLE and section.content:
            found = next((other for other in sections if other.kind == _REL and other.info == number), None)
            references = () if found is None else _references(section, found, symbols, maps)
            programs[section.name] = Program(section.name, section.content, references)
    licence = next((section.content for section in sections if section.name == "license"), b"")
    return Object(programs, maps, licence.rstrip(b"\0").decode())


def _sections(data: bytes) -> list[_Section]:
    header = _HEADER.unpack_from(data)
    machine, offset, size, count, names = header[2], header[6], header[11], header[12], header[13]
    if machine != _MACHINE_BPF:
        raise ObjectError(f"the object is for machine {machine}, not for BPF")
    rows = [_SECTION.unpack_from(data, offset + size * number) for number in range(count)]
    texts = data[rows[names][4] : rows[names][4] + rows[names][5]]
    return [
        _Section(
            _text(texts, row[0]),
            row[1],
            row[2],
            b"" if row[1] == _NOBITS else data[row[4] : row[4] + row[5]],
            row[6],
            row[7],
        )
        for row in rows
    ]


def _symbols(table: _Section, texts: bytes) -> list[tuple[str, int, int]]:
    """(name, section, offset in it) of each."""
    rows = _SYMBOL.iter_unpack(table.content)
    return [(_text(texts, name), section, value) for name, _, _, section, value, _ in rows]


def _text(texts: bytes, at: int) -> str:
    return texts[at : texts.index(b"\0", at)].decode()


def _references(
    section: _Section, relocations: _Section, symbols: list[tuple[str, int, int]], maps: dict[str, MapSpec]
) -> tuple[tuple[int, str], ...]:
    found = []
    for offset, info in _RELOCATION.iter_unpack(relocations.content):
        name = symbols[info >> 32][0]
        if name not in maps or section.content[offset] != _LOAD_64:
            raise ObjectError(f"program {section.name} refers to {name or 'something without a name'}, which is no map")
        found.append((offset // 8, name))
    return tuple(found)
