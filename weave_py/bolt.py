"""Bolt files, in which Weave Net keeps its state: bytes to buckets, and buckets to bytes.

Reading takes any valid layout: either meta page, branch pages, overflow pages, buckets of their own or inline; which
pages are free does not matter. Nothing is believed: a page is read once, and what overlaps is refused, so time and
memory are bounded by the size of the file. Writing makes a whole new file of one leaf a bucket.
Source: Kubernetes and CNI spec §7; bbolt, "File layout".
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Union

Bucket = dict[bytes, Union[bytes, "Bucket"]]

_PAGE = struct.Struct("<QHHI")
_META = struct.Struct("<IIIIQQQQQ")
_SUM = struct.Struct("<Q")
_LEAF = struct.Struct("<IIII")
_BRANCH = struct.Struct("<IIQ")
_BUCKET = struct.Struct("<QQ")
_MAGIC, _VERSION = 0xED0CDAED, 2
_IS_BRANCH, _IS_LEAF, _IS_META, _IS_FREELIST = 1, 2, 4, 16
_IS_BUCKET = 1
_PAGE_SIZES = tuple(1 << bits for bits in range(9, 17))
_PAGE_SIZE = 4096
# Bolt branches into dozens of pages at least: a deeper tree is a loop.
_MAX_DEPTH = 32


class BoltError(Exception):
    """Bytes that are no sound Bolt file, in one line."""


@dataclass(frozen=True, slots=True)
class _Meta:
    page_size: int
    root: int
    transaction: int


def parse(content: bytes) -> Bucket:
    """The buckets of a file, by name. Raises BoltError."""
    metas = [meta for size in _PAGE_SIZES for meta in (_meta(content, 0, size), _meta(content, size, size)) if meta]
    if not metas:
        raise BoltError("it has no valid meta page")
    meta = max(metas, key=lambda meta: meta.transaction)
    return _Reader(content, meta.page_size).bucket(meta.root, 0)


def _meta(content: bytes, start: int, page_size: int) -> _Meta | None:
    """The meta page at an offset, if it is one, whole, of a file with such pages."""
    fields_at = start + _PAGE.size
    end = fields_at + _META.size
    if end + _SUM.size > len(content):
        return None
    magic, format_version, size, _, root, _, _, _, transaction = _META.unpack_from(content, fields_at)
    (wanted,) = _SUM.unpack_from(content, end)
    sound = (magic, format_version, size, wanted) == (_MAGIC, _VERSION, page_size, _fnv1a(content[fields_at:end]))
    return _Meta(page_size, root, transaction) if sound else None


class _Reader:
    """Walks the pages of one file, each at most once."""

    def __init__(self, content: bytes, page_size: int) -> None:
        self._content = memoryview(content)
        self._page_size = page_size
        self._seen: set[int] = set()
        # What is in an inline bucket is counted with it and again by itself.
        self._budget = 2 * len(content)

    def bucket(self, page: int, depth: int) -> Bucket:
        found: Bucket = {}
        self._tree(page, depth, found)
        return found

    def _tree(self, page: int, depth: int, found: Bucket) -> None:
        if depth > _MAX_DEPTH:
            raise BoltError("its pages form no tree")
        span = self._page(page)
        _, flags, count, _ = _PAGE.unpack_from(span)
        if flags & _IS_LEAF:
            self._leaf(span, count, depth, found)
        elif flags & _IS_BRANCH:
            for index in range(count):
                _, _, child = _BRANCH.unpack_from(span, self._element(span, index, _BRANCH.size))
                self._tree(child, depth + 1, found)
        else:
            raise BoltError(f"page {page} is neither branch nor leaf")

    def _page(self, page: int) -> memoryview:
        """A page with its overflow pages."""
        start = page * self._page_size
        if page in self._seen or start + self._page_size > len(self._content):
            raise BoltError(f"page {page} is {'used twice' if page in self._seen else 'beyond the end'}")
        name, _, _, overflow = _PAGE.unpack_from(self._content, start)
        end = start + (overflow + 1) * self._page_size
        if name != page or end > len(self._content):
            raise BoltError(f"page {page} is damaged")
        self._seen.update(range(page, page + overflow + 1))
        return self._content[start:end]

    def _leaf(self, span: memoryview, count: int, depth: int | None, found: Bucket) -> None:
        """The elements of a leaf; `depth` is None in an inline bucket, which holds values only."""
        for index in range(count):
            at = self._element(span, index, _LEAF.size)
            flags, position, key_size, value_size = _LEAF.unpack_from(span, at)
            value_at = at + position + key_size
            end = value_at + value_size
            self._budget -= key_size + value_size
            if end > len(span) or self._budget < 0:
                raise BoltError("an element is larger than its page")
            key, value = bytes(span[at + position : value_at]), span[value_at:end]
            if not flags & _IS_BUCKET:
                found[key] = bytes(value)
            elif depth is None:
                # Bolt inlines only what holds no further bucket; others would multiply what is to be read.
                raise BoltError("an inline bucket holds a bucket")
            else:
                found[key] = self._inner(value, depth + 1)

    def _inner(self, value: memoryview, depth: int) -> Bucket:
        """A bucket inside a bucket: the number of its root page, or that page itself."""
        if len(value) < _BUCKET.size:
            raise BoltError("a bucket is cut short")
        root, _ = _BUCKET.unpack_from(value)
        if root:
            return self.bucket(root, depth)
        inline = value[_BUCKET.size :]
        if len(inline) < _PAGE.size:
            raise BoltError("a bucket is cut short")
        _, flags, count, _ = _PAGE.unpack_from(inline)
        if not flags & _IS_LEAF:
            raise BoltError("an inline bucket is no leaf")
        found: Bucket = {}
        self._leaf(inline, count, None, found)
        return found

    @staticmethod
    def _element(span: memoryview, index: int, size: int) -> int:
        at = _PAGE.size + index * size
        if at + size > len(span):
            raise BoltError("a page has more elements than fit")
        return at


def build(buckets: Mapping[bytes, Mapping[bytes, bytes]]) -> bytes:
    """A file of these buckets, as Bolt makes one: two metas, an empty freelist, a leaf of buckets, a leaf for each."""
    free, root = 2, 3
    pages: list[bytes] = []
    names: dict[bytes, bytes] = {}
    for name, values in buckets.items():
        number = root + 1 + sum(len(page) for page in pages) // _PAGE_SIZE
        names[name] = _BUCKET.pack(number, 0)
        pages.append(_leaf_page(number, values, 0))
    top = _leaf_page(root, names, _IS_BUCKET)
    if len(top) > _PAGE_SIZE:
        raise BoltError("more buckets than a page holds")
    count = root + 1 + sum(len(page) for page in pages) // _PAGE_SIZE
    metas = [_meta_page(number, root, free, count) for number in (0, 1)]
    return b"".join([*metas, _padded(_PAGE.pack(free, _IS_FREELIST, 0, 0)), top, *pages])


def _meta_page(number: int, root: int, free: int, count: int) -> bytes:
    fields = _META.pack(_MAGIC, _VERSION, _PAGE_SIZE, 0, root, 0, free, count, number)
    return _padded(_PAGE.pack(number, _IS_META, 0, 0) + fields + _SUM.pack(_fnv1a(fields)))


def _leaf_page(number: int, values: Mapping[bytes, bytes], flags: int) -> bytes:
    elements, content = [], b""
    for index, (key, value) in enumerate(sorted(values.items())):
        position = (len(values) - index) * _LEAF.size + len(content)
        elements.append(_LEAF.pack(flags, position, len(key), len(value)))
        content += key + value
    size = _PAGE.size + len(elements) * _LEAF.size + len(content)
    head = _PAGE.pack(number, _IS_LEAF, len(elements), (size - 1) // _PAGE_SIZE)
    return _padded(head + b"".join(elements) + content)


def _padded(page: bytes) -> bytes:
    return page + bytes(-len(page) % _PAGE_SIZE)


def _fnv1a(content: bytes) -> int:
    """The 64-bit sum that a meta page carries of its fields."""
    total = 0xCBF29CE484222325
    for byte in content:
        total = (total ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return total
