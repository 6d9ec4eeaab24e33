"""Maps and programs in the running kernel."""

import errno
import struct
from collections.abc import Mapping

import pytest
from pyroute2 import IPRoute

from bpf import tc
from bpf.elf import Object, Program, parse
from bpf.loader import load, maps_of
from bpf.syscall import BpfError, Map, MapInfo, MapType
from tests.bpf.test_object import OBJECT
from tests.namespaces import namespace, within


def test_a_hash() -> None:
    one = Map.create(MapInfo(MapType.HASH, 4, 8, 3, 0, "some"))
    keys = [struct.pack("=I", number) for number in range(3)]
    for number, key in enumerate(keys):
        one.set(key, struct.pack("=Q", number))
    assert sorted(one.all_keys()) == keys and len(one.first_keys(2)) == 2
    assert one.get(keys[2]) == struct.pack("=Q", 2)
    with pytest.raises(BpfError) as refused:
        one.set(struct.pack("=I", 9), bytes(8))
    assert refused.value.errno == errno.E2BIG
    one.delete(keys[2])
    one.delete(keys[2])
    assert one.get(keys[2]) is None and len(one.all_keys()) == 2
    one.close()


def test_a_queue_is_emptied_in_order() -> None:
    one = parse(OBJECT.read_bytes()).maps["events"]
    queue = Map.create(MapInfo(one.kind, one.key_size, one.value_size, one.max_entries, one.flags, one.name))
    assert queue.pop() is None
    queue.close()


def test_the_verifier_says_why() -> None:
    # exit without a result: r0 was never written.
    program = Program("bad", bytes([0x95, 0, 0, 0, 0, 0, 0, 0]), ())
    with pytest.raises(BpfError, match=r"program bad: .*the verifier: .*R0 !read_ok"):
        load(Object({"bad": program}, {}, "GPL"))


def _ends(programs: Mapping[str, int]) -> dict[str, int]:
    """Those for the two ends of an interface."""
    return {name: programs[name] for name in tc.PARENTS}


def test_programs_are_found_again_and_keep_their_maps() -> None:
    content = parse(OBJECT.read_bytes())

    def inside() -> None:
        with IPRoute() as ip:
            ip.link("add", ifname="one", kind="veth", peer={"ifname": "other"})
            index = int(ip.link_lookup(ifname="one")[0])
            assert tc.attached(index) == []
            first = load(content)
            tc.attach(ip, index, _ends(first.programs))
            numbers = tc.attached(index)
            assert len(numbers) == 2
            first.maps["sources"].set(b"7" * 16, struct.pack("=I", 1))
            found = maps_of(numbers)
            assert set(found) == set(content.maps)
            second = load(content, existing=found)
            tc.attach(ip, index, _ends(second.programs))
            assert len(tc.attached(index)) == 2 and set(tc.attached(index)).isdisjoint(numbers)
            assert second.maps["sources"].all_keys() == [b"7" * 16]

    with namespace() as name:
        within(name, inside)
