"""The table in the kernel beside cases: adoption, refusals, drops that are told, connections that are known."""

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_address

import pytest

from host.bridge import ensure_bridge
from nft.wire import NftError
from npc import bridge, flows
from npc.drops import Drops, Judged
from npc.kernel import Table
from npc.nflog import PacketLog
from npc.plan import (
    Accept,
    Base,
    Chain,
    Count,
    Direction,
    Drop,
    ElementSet,
    Established,
    Field,
    Hook,
    InSet,
    Jump,
    Key,
    Log,
    Plan,
    Rule,
    VerdictMap,
    Vmap,
)
from tests.namespaces import namespace, run, within


def packed(text: str) -> bytes:
    return ip_address(text).packed


def small(hook: Hook = Hook.FORWARD) -> Plan:
    """One isolated address, and a policy that lets one address reach it."""
    made = Plan(counters={"ci-x"})
    made.sets["p4-a"] = ElementSet("p4-a", Key.ADDRESS4, {packed("127.0.0.7")}, "app=x")
    made.maps["in4"] = VerdictMap("in4", Key.ADDRESS4, {packed("127.0.0.9"): "ci-x"})
    made.chains["pi-x"] = Chain("pi-x", (Rule((InSet((Field.SOURCE4,), "p4-a"),), (Accept(),), "shop/p#0"),))
    judged = (Rule((), (Jump("pi-x"),)), Rule((), (Count("ci-x"), Log("wnpc:i:x"))), Rule((), (Drop(),)))
    made.chains["ci-x"] = Chain("ci-x", judged)
    leads = (Rule((Established(),), (Accept(),)), Rule((), (Vmap(Field.DESTINATION4, "in4"),)))
    made.chains["ingress"] = Chain("ingress", leads, Base(hook, -4))
    return made


@pytest.fixture
def place() -> Iterator[str]:
    with namespace() as name:
        yield name


@contextlib.contextmanager
def table(place: str) -> Iterator[Table]:
    made = within(place, Table)
    try:
        yield made
    finally:
        made.close()


def test_a_table_outlives_whoever_wrote_it(place: str) -> None:
    with table(place) as first:
        assert not within(place, first.exists)
        within(place, lambda: first.replace(small()))
    with table(place) as second:
        assert within(place, second.exists)
        assert within(place, lambda: second.audit(small())) == []
        assert within(place, second.remove)
        assert not within(place, second.remove)


def test_what_the_kernel_refuses_is_left_out_and_named(place: str) -> None:
    plan = small()
    plan.chains["pi-x"] = Chain("pi-x", (Rule((InSet((Field.SOURCE4,), "nowhere"),), (Accept(),)),))
    with table(place) as made:
        within(place, lambda: made.replace(plan))
        assert list(made.refused) == ["pi-x"]
        assert "No such file" in made.refused["pi-x"]
        # The chain is there, empty: whoever is isolated stays so.
        assert within(place, lambda: made.audit(plan)) == []
        within(place, lambda: made.replace(small()))
        assert made.refused == {}


def test_a_plan_without_its_base_is_refused_and_the_old_one_stays(place: str) -> None:
    plan = small()
    plan.maps["in4"].chains[packed("127.0.0.8")] = "nowhere"
    with table(place) as made:
        within(place, lambda: made.replace(small()))
        with pytest.raises(NftError, match="in4"):
            within(place, lambda: made.replace(plan))
        assert within(place, lambda: made.audit(small())) == []


def send(source: str, destination: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.sendto(b"x", (destination, 99))


def test_drops_are_told_counted_and_survive_a_rewrite(place: str) -> None:
    log = within(place, PacketLog)
    with table(place) as made:
        within(place, lambda: made.replace(small(Hook.POSTROUTING)))
        for _ in range(3):
            with contextlib.suppress(PermissionError):
                within(place, lambda: send("127.0.0.6", "127.0.0.9"))
        within(place, lambda: send("127.0.0.7", "127.0.0.9"))
        drops = Drops(lambda direction, address: Judged("shop/db", ("shop/p",)))
        deadline, told = time.monotonic() + 5, []
        while sum(drops.blocked.values()) < 3 and time.monotonic() < deadline:
            told += [drop for each in log.read() if (drop := drops.see(each.prefix, each.packet, time.time()))]
        assert drops.blocked == {("udp", "99"): 3}
        [drop] = told
        assert (drop.direction, drop.isolated, drop.policies) == (Direction.INGRESS, "shop/db", ("shop/p",))
        assert str(drop).endswith(":99 blocked by Weave NPC. (ingress shop/db, policies: shop/p)")
        assert made.counters()["ci-x"][0] == 3
        within(place, lambda: made.replace(small(Hook.POSTROUTING)))
        assert made.counters()["ci-x"][0] == 3
        log.close()


def test_one_program_listens_to_the_log(place: str) -> None:
    log = within(place, PacketLog)
    with pytest.raises(NftError) as raised:
        within(place, PacketLog)
    assert raised.value.errno in (errno.EBUSY, errno.EPERM)
    log.close()
    within(place, PacketLog).close()


def test_known_connections_of_an_address_end(place: str) -> None:
    with table(place) as made:
        within(place, lambda: made.replace(small(Hook.POSTROUTING)))
        within(place, lambda: send("127.0.0.7", "127.0.0.9"))
        within(place, lambda: send("127.0.0.7", "127.0.0.7"))
        for many in ((), [packed(f"10.0.0.{n}") for n in range(40)]):
            found = within(place, partial(flows.known, {packed("127.0.0.9"), *many}))
            assert [one.flow for one in found] == [flows.Flow(packed("127.0.0.7"), packed("127.0.0.9"), 17, 99)]
        assert within(place, lambda: flows.forget(found)) == 1
        assert within(place, lambda: flows.forget(found)) == 0
        assert len(within(place, lambda: flows.known({packed("127.0.0.7")}))) == 1


def test_packets_of_a_bridge_pass_the_rules_once_asked(place: str) -> None:
    assert within(place, lambda: bridge.ensure("weave")) == (False, "")
    within(place, lambda: ensure_bridge("weave", "0a:00:00:00:00:01", 1400))
    assert within(place, lambda: bridge.ensure("weave")) == (True, "")
    assert within(place, lambda: bridge.ensure("weave")) == (False, "")
    run("ip", "-n", place, "link", "set", "weave", "type", "bridge", "nf_call_iptables", "0")
    assert within(place, lambda: bridge.ensure("weave")) == (True, "")
    assert "nf_call_iptables 1" in run("ip", "-n", place, "-d", "link", "show", "weave")
    assert not within(place, bridge.ipvs)
