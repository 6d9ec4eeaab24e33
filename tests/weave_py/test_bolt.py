"""Bolt files: a real one, any layout that Bolt may make, and bytes that are none."""

import random
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors import ROOT
from weave_py import bolt
from weave_py.bolt import BoltError, Bucket

SAMPLE = ROOT / "api" / "boltdb-sample-host2.db"
DUMP = ROOT / "api" / "boltdb-sample-host2.dump.txt"


def dumped() -> dict[bytes, bytes]:
    """The values of the sample, from a hex dump that another program made."""
    values: dict[bytes, bytes] = {}
    for line in DUMP.read_text().splitlines():
        if line.startswith("key"):
            key = line.split('"')[1].encode()
            values[key] = b""
        elif line[:8].strip() and not line.startswith("bucket"):
            values[key] += bytes.fromhex(line[10:58].replace(" ", ""))
    return values


def test_the_sample() -> None:
    assert bolt.parse(SAMPLE.read_bytes()) == {b"top": dumped()}


def fnv1a(fields: bytes) -> int:
    total = 0xCBF29CE484222325
    for byte in fields:
        total = (total ^ byte) * 0x100000001B3 % 2**64
    return total


class Layout:
    """Writes buckets as Bolt might: pages anywhere, split where chance says so, small buckets inline or not."""

    def __init__(self, rng: random.Random, page_size: int) -> None:
        self.rng = rng
        self.page_size = page_size
        self.content = bytearray(rng.randbytes(2 * page_size))

    def file(self, tree: Bucket) -> bytes:
        root = self.bucket(tree)
        newest, rng = self.rng.randrange(2), self.rng
        for number in (0, 1):
            # The older meta may speak of a root that is no more.
            self.meta(number, root if number == newest else rng.randrange(5), 8 + (number == newest))
        if rng.random() < 0.5:
            # One of them was being written when the power went: the other counts.
            self.meta(1 - newest, root, 8)
            self.content[rng.randrange(2) * self.page_size + 16 + rng.randrange(64)] ^= 1 << rng.randrange(8)
        return bytes(self.content)

    def rooted(self, root: int) -> bytes:
        self.meta(0, root, 0)
        self.meta(1, root, 1)
        return bytes(self.content)

    def meta(self, number: int, root: int, transaction: int) -> None:
        fields = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, self.page_size, 0, root, 0, 2**64 - 1, 99, transaction)
        page = struct.pack("<QHHI", number, 4, 0, 0) + fields + struct.pack("<Q", fnv1a(fields))
        self.content[number * self.page_size : number * self.page_size + len(page)] = page

    def bucket(self, tree: Bucket) -> int:
        """Write it; its root page."""
        elements = [(key, *self.element(value)) for key, value in sorted(tree.items())]
        leaves: list[tuple[bytes, int]] = []
        while elements or not leaves:
            take = self.rng.choice((1, 2, 3, 7, len(elements)))
            part, elements = elements[:take], elements[take:]
            leaves.append((part[0][0] if part else b"", self.page(2, leaf_body(part), len(part))))
        while len(leaves) > 1:
            above: list[tuple[bytes, int]] = []
            while leaves:
                take = self.rng.choice((2, 3, 50))
                part_of, leaves = leaves[:take], leaves[take:]
                above.append((part_of[0][0], self.page(1, branch_body(part_of), len(part_of))))
            leaves = above
        return leaves[0][1]

    def element(self, value: bytes | Bucket) -> tuple[int, bytes]:
        if isinstance(value, bytes):
            return 0, value
        plain = [(key, 0, inner) for key, inner in sorted(value.items()) if isinstance(inner, bytes)]
        if len(plain) == len(value) and self.rng.random() < 0.5:
            return 1, struct.pack("<QQQHHI", 0, 7, 0, 2, len(plain), 0) + leaf_body(plain)
        return 1, struct.pack("<QQ", self.bucket(value), 7)

    def page(self, flags: int, body: bytes, count: int) -> int:
        """Write a page somewhere behind, with what a deleted page left in between."""
        self.content += self.rng.randbytes(self.page_size * self.rng.choice((0, 0, 1, 3)))
        number = len(self.content) // self.page_size
        size = 16 + len(body)
        overflow = (size - 1) // self.page_size
        self.content += struct.pack("<QHHI", number, flags, count, overflow) + body
        self.content += bytes(-len(self.content) % self.page_size)
        return number


def leaf_body(elements: list[tuple[bytes, int, bytes]]) -> bytes:
    heads, rest = b"", b""
    for index, (key, flags, value) in enumerate(elements):
        heads += struct.pack("<IIII", flags, 16 * (len(elements) - index) + len(rest), len(key), len(value))
        rest += key + value
    return heads + rest


def branch_body(children: list[tuple[bytes, int]]) -> bytes:
    heads, rest = b"", b""
    for index, (key, number) in enumerate(children):
        heads += struct.pack("<IIQ", 16 * (len(children) - index) + len(rest), len(key), number)
        rest += key
    return heads + rest


VALUES = st.one_of(st.binary(max_size=40), st.builds(lambda size: b"x" * size, st.integers(0, 20000)))
FLAT = st.dictionaries(st.binary(min_size=1, max_size=20), VALUES, max_size=40)
TREES = st.recursive(
    FLAT, lambda inner: st.dictionaries(st.binary(min_size=1, max_size=8), VALUES | inner, max_size=8), max_leaves=6
)
ROOTS = st.dictionaries(st.binary(min_size=1, max_size=8), TREES, max_size=4)


@settings(max_examples=150, deadline=None)
@given(ROOTS, st.randoms(use_true_random=False), st.sampled_from((512, 1024, 4096, 16384, 65536)))
def test_any_layout(tree: Bucket, rng: random.Random, page_size: int) -> None:
    assert bolt.parse(Layout(rng, page_size).file(tree)) == tree


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.binary(min_size=1, max_size=8), FLAT, max_size=5))
def test_what_we_write_we_read(tree: dict[bytes, dict[bytes, bytes]]) -> None:
    content = bolt.build(tree)
    assert bolt.parse(content) == tree
    assert len(content) % 4096 == 0 and len(content) >= 4 * 4096


def test_more_buckets_than_fit() -> None:
    with pytest.raises(BoltError, match="more buckets"):
        bolt.build({b"%d" % number * 100: {} for number in range(50)})


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", bytes(4096), bytes(65536 * 2), b"SQLite format 3\0" * 1000],
    ids=["nothing", "a byte", "a page of zeros", "zeros", "another format"],
)
def test_no_bolt_file(content: bytes) -> None:
    with pytest.raises(BoltError, match="it has no valid meta page"):
        bolt.parse(content)


def outcome(content: bytes) -> Bucket | str:
    """What a file says, or the one line why it says nothing."""
    try:
        return bolt.parse(content)
    except BoltError as error:
        return str(error)


def test_cut_anywhere() -> None:
    whole = SAMPLE.read_bytes()
    for length in (*range(0, len(whole), 97), *range(0, len(whole), 4096)):
        found = outcome(whole[:length])
        assert isinstance(found, str) or found == {b"top": dumped()}


def test_loops_and_overlaps_are_refused() -> None:
    """Small files that would be endless, or expand to far more than they are."""
    rng = random.Random(1)
    looped = Layout(rng, 4096)
    number = looped.page(1, branch_body([(b"a", 0), (b"b", 0)]), 2)
    looped.content[number * 4096 + 16 + 8 : number * 4096 + 16 + 16] = struct.pack("<Q", number)
    assert "used twice" in str(outcome(looped.rooted(number)))

    # A thousand elements that are all the same forty kilobytes.
    overlapping = Layout(rng, 65536)
    heads = b"".join(struct.pack("<IIII", 0, 16 * (1000 - index), 8, 40000) for index in range(1000))
    number = overlapping.page(2, heads + bytes(40008), 1000)
    assert outcome(overlapping.rooted(number)) == "an element is larger than its page"

    # Inline buckets that contain themselves.
    nested = Layout(rng, 65536)
    heads = b"".join(struct.pack("<IIII", 1, 0, 0, 60000 - 16 * index) for index in range(1000))
    number = nested.page(2, heads + bytes(48000), 1000)
    begun = time.monotonic()
    assert isinstance(outcome(nested.rooted(number)), str)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("seed", range(4))
def test_bad_bytes(seed: int) -> None:
    """One clear line, or a value: never another error, and never for long."""
    rng = random.Random(seed)
    tree: Bucket = {b"top": {b"k%d" % n: rng.randbytes(rng.choice((3, 50, 5000))) for n in range(60)}, b"b": {b"c": {}}}
    originals = [SAMPLE.read_bytes(), Layout(rng, 512).file(tree), Layout(rng, 4096).file(tree)]
    begun = time.monotonic()
    for _ in range(1500):
        bad = bytearray(rng.choice(originals))
        for _ in range(rng.choice((1, 1, 2, 8))):
            # Numbers stand at the beginnings of pages; metas stay, or nothing would be read.
            place = rng.choice(
                (rng.randrange(1024, len(bad)), rng.randrange(len(bad) // 512) * 512 + rng.randrange(64))
            )
            bad[place] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        found = outcome(bytes(bad))
        assert not isinstance(found, str) or "\n" not in found
    assert time.monotonic() - begun < 60
