"""Coverage-guided garbage for everything that reads a peer's bytes.

    python -m tests.fuzz.fuzz_bytes -runs=100000          libFuzzer's flags
    python -m tests.fuzz.fuzz_bytes -max_total_time=300

The first byte chooses the reader. Whatever comes out other than the protocol's own error is a finding.
"""

import sys
from collections.abc import Callable
from random import Random

import atheris

with atheris.instrument_imports(include=["mesh", "overlay", "sleeve", "dns", "ipam"]):
    from dns.answers import Answers
    from dns.gossip_wire import Family, decode
    from dns.message import MessageError, parse_query
    from dns.reply import parse_reply
    from dns.table import NameTable
    from ipam import wire
    from ipam.merge import merge
    from ipam.ranges import Subnet
    from ipam.ring import Ring, RingError
    from mesh import gob
    from mesh.crypto import Opener
    from mesh.errors import ProtocolError
    from mesh.features import FEATURE_MAP, parse_features
    from mesh.handshake import FrameCodec, GobStreamCodec, Handshake
    from mesh.messages import decode_gossip, decode_gossip_unicast
    from mesh.names import PeerName
    from mesh.topology import Topology
    from overlay.frames import ipv4_header
    from overlay.icmp import frag_needed, packet_too_big
    from sleeve.datagram import DatagramError, PlainSession, SealedSession, decode_frames
    from sleeve.fragment import fragment


def _introduce(data: bytes, password: bool, version: int) -> None:
    machine = Handshake(
        outbound=bool(data[:1] > b"\x80"),
        name=PeerName(1),
        nickname="fuzzed",
        uid=1,
        conn_id=1,
        short_id=1,
        trusted=False,
        extra={},
        passwords=(b"p",) if password else (),
        max_version=version,
        key_seed=bytes(32),
    )
    machine.receive(b"weave\x01\x02" + data, 0.0)


def _gob(data: bytes) -> None:
    decoder = gob.Decoder(data)
    while not decoder.at_end():
        kind, value = decoder.next_any()
        del kind, value


def _topology(data: bytes) -> None:
    topology = Topology(PeerName(1), "us", 9, rng=Random(1))
    topology.merge(data)
    topology.collect()
    for _ in topology.encode_full(1 << 20):
        pass


def _frames(data: bytes) -> None:
    for session in (PlainSession(PeerName(1)), SealedSession(PeerName(1), bytes(32), outbound=True)):
        body = session.open(data)
        for _, _, frame in decode_frames(body or b""):
            ipv4_header(frame)
            frag_needed(frame, 1400)
            packet_too_big(frame, 1400)
            fragment(frame, 576)


def _names(data: bytes) -> None:
    for family in Family:
        table = NameTable(PeerName(1), "weave.local.", lambda name: name < 9, lambda name, address: None)
        table.receive(decode(family, data).entries, 1_700_000_000)
        table.entries()


def _query(data: bytes) -> None:
    answers = Answers("weave.local.", 1, Random(1), lambda name: None)
    tables = [NameTable(PeerName(1), "weave.local.", lambda name: True, lambda *what: None) for _ in range(2)]
    answers.serve(*tables)
    tables[0].add("web.weave.local", "c", 1)
    quick = answers.quick(data)
    query = parse_query(data)
    if query is not None:
        full = answers.answer(query, False)
        for spot in (quick, answers.quick(data)):
            assert spot is None or spot == full


def _reply(data: bytes) -> None:
    query = parse_query(b"\x12\x34\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1")
    assert query is not None
    reply = parse_reply(data[:12] + query.question + data[12:], 19) if len(data) >= 12 else None
    assert reply is None or len(reply.for_client(query, False, 9)) <= 512


def _addresses(data: bytes) -> None:
    universe = Subnet.parse("10.32.0.0/12")
    ours = Ring(universe).seeded([PeerName(1), PeerName(2)])
    used = universe.start + 5
    copy = wire.decode_state(data).ring
    if copy is not None:
        merged = merge(ours, copy, PeerName(1), lambda bounds: [used] if bounds.holds(used) else [])
        merged.ring.check()
        assert merged.ring.owner(used) == PeerName(1)
    wire.decode_request(data)


READERS: list[Callable[[bytes], object]] = [
    lambda data: _introduce(data, password=False, version=2),
    lambda data: _introduce(data, password=True, version=2),
    lambda data: _introduce(data, password=False, version=1),
    lambda data: _introduce(data, password=True, version=1),
    lambda data: parse_features(gob.decode(data, FEATURE_MAP)),
    _gob,
    FrameCodec(None, None).feed,
    GobStreamCodec(None, None).feed,
    FrameCodec(None, Opener(bytes(32), sender_is_dialer=True)).feed,
    decode_gossip,
    decode_gossip_unicast,
    _topology,
    _frames,
    _names,
    _query,
    _reply,
    _addresses,
]


def one_input(data: bytes) -> None:
    """What the fuzzer calls."""
    if not data:
        return
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except (ProtocolError, DatagramError, MessageError, RingError):
        return


def main() -> None:
    """Run until a finding, or for as long as the flags say."""
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
