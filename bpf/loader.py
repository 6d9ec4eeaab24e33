"""Loading an object into the kernel: its maps, new or those that another process left, then its programs.

Maps that are there are used again where they are what the object asks for; forwarding goes on from them while a
program is replaced by a newer one. Source: bpf(2).
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bpf.elf import MapSpec, Object
from bpf.syscall import BpfError, Map, MapInfo, load_program, map_by_id, program_by_id, program_info

SCHED_CLS = 3
# r0 = 0; exit
_NOTHING = bytes.fromhex("b7000000000000009500000000000000")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Programs by the name of their section, as descriptors, and their maps by name."""

    programs: Mapping[str, int]
    maps: Mapping[str, Map]


def check(kind: int = SCHED_CLS) -> None:
    """Whether the kernel takes programs from us. Raises BpfError."""
    os.close(load_program(kind, "check", _NOTHING, "GPL"))


def load(content: Object, kind: int = SCHED_CLS, existing: Mapping[str, Map] | None = None) -> Loaded:
    """Load all of it; `existing` maps are used where they fit. Raises BpfError."""
    maps = {name: _map(spec, (existing or {}).get(name)) for name, spec in content.maps.items()}
    descriptors = {name: made.descriptor for name, made in maps.items()}
    programs = {
        name: load_program(kind, name, program.linked(descriptors), content.licence)
        for name, program in content.programs.items()
    }
    return Loaded(programs, maps)


def _map(spec: MapSpec, existing: Map | None) -> Map:
    wanted = MapInfo(spec.kind, spec.key_size, spec.value_size, spec.max_entries, spec.flags, spec.name[:15])
    if existing is not None and existing.info == wanted:
        return existing
    try:
        return Map.create(wanted)
    except BpfError as error:
        raise BpfError(error.errno, f"map {spec.name}: {error.strerror}") from error


def maps_of(programs: Iterable[int]) -> dict[str, Map]:
    """The maps of programs that are loaded, given by their ids; none of those that are gone. Raises BpfError."""
    found: dict[str, Map] = {}
    for number in programs:
        descriptor = program_by_id(number)
        for identity in program_info(descriptor).map_ids:
            one = map_by_id(identity)
            if found.setdefault(one.info.name, one) is not one:
                one.close()
        os.close(descriptor)
    return found
