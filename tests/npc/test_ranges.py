"""Address arithmetic against plain membership, on a space small enough to try every address."""

from ipaddress import IPv4Network, ip_address, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from npc.plan import PortRange, Protocol
from npc.ranges import Network, merged_ports, spans

_FIRST = int(ip_address("10.0.0.0"))


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A network within 10.0.0.0/26, or one around it."""
    length = draw(st.sampled_from((0, 8, *range(26, 33))))
    return IPv4Network((_FIRST + draw(st.integers(0, 63)), length), strict=False)


blocks = st.lists(st.tuples(networks(), st.lists(networks(), max_size=3).map(tuple)), max_size=4)


@given(blocks)
def test_spans_hold_what_a_block_holds_and_no_exception_of_it(
    listed: list[tuple[Network, tuple[Network, ...]]],
) -> None:
    found = spans(listed)
    assert all(first <= last for first, last in found)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(found))
    for number in (0, *range(_FIRST - 1, _FIRST + 65), 2**32 - 1):
        ip = ip_address(number)
        wanted = any(ip in network and not any(ip in each for each in without) for network, without in listed)
        assert any(first <= number <= last for first, last in found) == wanted


def test_an_exception_takes_nothing_from_another_block() -> None:
    whole, part = ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")
    assert spans([(whole, (part,)), (part, ())]) == spans([(whole, ())])
    assert spans([(whole, (ip_network("0.0.0.0/0"),))]) == ()


def test_ports_are_merged_by_protocol() -> None:
    tcp, udp = Protocol.TCP, Protocol.UDP
    listed = [PortRange(tcp, 80, 81), PortRange(udp, 82, 90), PortRange(tcp, 82, 90), PortRange(tcp, 85, 86)]
    assert merged_ports(listed) == (PortRange(tcp, 80, 90), PortRange(udp, 82, 90))
