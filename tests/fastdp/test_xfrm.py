"""Associations and policies in the kernel, as `ip xfrm` shows them. Needs a kernel with ESP: `script/test-guest`."""

import pytest

from fastdp import esp, ipsec
from fastdp.ipsec import REQID, clean, problem
from fastdp.xfrm import Direction, Policy, State, Xfrm, XfrmError
from tests.namespaces import namespace, run, within

NO_ESP = problem()
pytestmark = pytest.mark.skipif(bool(NO_ESP), reason=f"this kernel does not encrypt: {NO_ESP}")
ENDS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
KEY = bytes(range(esp.KEY))


@pytest.mark.parametrize("version", [4, 6])
def test_associations(version: int) -> None:
    here, there = ENDS[version]

    def work() -> None:
        with Xfrm() as xfrm:
            spi = xfrm.allocate(there, here, REQID)
            inward = State(there, here, spi, REQID)
            xfrm.update(inward, KEY)
            outward = State(here, there, 0xC1234567, REQID)
            xfrm.add(outward, KEY)
            with pytest.raises(XfrmError, match="c1234567"):
                xfrm.add(outward, KEY)
            assert {state.spi for state in xfrm.states()} == {spi, 0xC1234567}
            assert xfrm.find(outward) == outward

    with namespace() as name:
        within(name, work)
        shown = run("ip", "-n", name, "-d", "xfrm", "state")
        assert f"src {here} dst {there}" in shown and "proto esp spi 0xc1234567" in shown and "mode transport" in shown
        assert f"aead rfc4106(gcm(aes)) 0x{KEY.hex()} 128" in shown
        assert "flag esn" in shown and "replay_window 256, bitmap-length 8" in shown and f"reqid {REQID}" in shown
        within(name, clean)
        assert run("ip", "-n", name, "xfrm", "state") == ""


@pytest.mark.parametrize("version", [4, 6])
def test_policies(version: int) -> None:
    here, there = ENDS[version]
    mine = Policy(Direction.OUT, here, there, 6784, 0xC1234567, REQID)
    arriving = Policy(Direction.IN, there, here, 6784, 0, REQID)

    def work() -> None:
        with Xfrm() as xfrm:
            xfrm.set(Policy(Direction.OUT, here, there, 6784, 0, REQID))
            xfrm.set(mine)
            xfrm.set(arriving)
            assert set(xfrm.policies()) == {mine, arriving}
            xfrm.unset(arriving)
            xfrm.unset(arriving)
            assert xfrm.policies() == [mine]

    with namespace() as name:
        within(name, work)
        length = 32 if version == 4 else 128
        shown = run("ip", "-n", name, "xfrm", "policy")
        assert f"src {here}/{length} dst {there}/{length} proto udp dport 6784" in shown
        assert "dir out" in shown and "proto esp spi 0xc1234567" in shown and "mode transport" in shown
        within(name, clean)
        assert run("ip", "-n", name, "xfrm", "policy") == ""


def test_a_policy_of_2_8_is_read() -> None:
    def work() -> list[Policy]:
        with Xfrm() as xfrm:
            return xfrm.policies()

    with namespace() as name:
        between = ("src", "10.0.0.1/32", "dst", "10.0.0.2/32", "proto", "udp", "dir", "out")
        template = ("tmpl", "src", "10.0.0.1", "dst", "10.0.0.2", "proto", "esp", "spi", "7", "mode", "transport")
        run("ip", "-n", name, "xfrm", "policy", "add", *between, "mark", "0x20000", "mask", "0x20000", *template)
        assert within(name, work) == [Policy(Direction.OUT, "10.0.0.1", "10.0.0.2", 0, 7, 0, ipsec.OLD_MARK)]
        within(name, clean)
        assert within(name, work) == []
