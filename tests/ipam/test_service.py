"""The service: answers after the commit, group commit, failures of the journal, restarts, and peers that help."""

import asyncio
from ipaddress import ip_address

import pytest

from ipam.ranges import Subnet
from ipam.seams import Cidr, IpamError, Unavailable
from ipam.wire import Kind
from tests.ipam.hub import UNIVERSE, Hub, hub

WAIT = 10


async def until(condition: object, seconds: float = WAIT) -> None:
    """Let the loop run until something is so."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_peer_alone() -> None:
    async with hub("consensus=1") as made:
        ipam = made.peers[1]
        assert str(await ipam.allocate("c1")) == "10.32.0.1/24"
        assert str(await ipam.allocate("c1")) == "10.32.0.1/24"
        assert str(await ipam.allocate("c2", Subnet.parse("10.32.0.64/26"))) == "10.32.0.65/26"
        assert str(await ipam.allocate("_")) == "10.32.0.2/24"
        assert list(ipam.owned()) == ["c1", "c2", "10.32.0.2"]
        await ipam.claim("c3", ipam.cidr("10.32.0.0/24"))
        await ipam.claim("c3", ipam.cidr("192.168.9.9/24"))
        assert list(map(str, ipam.lookup("c2"))) == ["10.32.0.65/26"]
        assert ipam.lookup("c3") == []
        await ipam.free("c1", ip_address("10.32.0.1"))
        await ipam.delete("c2")
        assert made.journals[1].owned.keys() == {"10.32.0.2", "c3"}
        assert ipam.report()["ActiveIPs"] == 2
        await ipam.prime()


@pytest.mark.parametrize(
    ("ident", "cidr", "text"),
    [
        ("c4", "10.32.0.9/24", "address 10.32.0.9/24 is already owned by c3"),
        ("c5", "192.168.9.9/24", "address 192.168.9.9/24 already in use by c4"),
        ("c5", "10.32.0.7/24", "address 10.32.0.7/24 already in use"),
        ("c3", "10.32.0.9/24", None),
        ("_", "10.32.0.9/24", None),
        ("_", "192.168.9.9/24", None),
        ("_", "10.32.0.7/24", None),
    ],
)
async def test_claims_of_held_addresses(ident: str, cidr: str, text: str | None) -> None:
    async with hub("consensus=1") as made:
        ipam = made.peers[1]
        for holder, held in [("c3", "10.32.0.9/24"), ("c4", "192.168.9.9/24"), ("_", "10.32.0.7/24")]:
            await ipam.claim(holder, ipam.cidr(held))
        before = dict(ipam.owned())
        if text is None:
            await ipam.claim(ident, ipam.cidr(cidr))
        else:
            with pytest.raises(IpamError) as raised:
                await ipam.claim(ident, ipam.cidr(cidr))
            assert str(raised.value) == text
        assert ipam.owned() == before


async def test_refusals() -> None:
    async with hub("consensus=1") as made:
        ipam = made.peers[1]
        with pytest.raises(IpamError, match=r"^range 172\.30\.0\.0/24 out of bounds: 10\.32\.0\.0/24$"):
            await ipam.allocate("c1", ipam.subnet("172.30.0.0/24"))
        with pytest.raises(IpamError, match=r"^Free: address 10\.33\.1\.0 not found for ctr1$"):
            await ipam.free("ctr1", ip_address("10.33.1.0"))
        with pytest.raises(IpamError, match=r"^Delete: no addresses for ctr1$"):
            await ipam.delete("ctr1")
        with pytest.raises(IpamError, match=r"^invalid Non-IPv4 address not supported: fd00::1/64$"):
            ipam.cidr("fd00::1/64")
        with pytest.raises(IpamError, match=r"^invalid subnet - bits after network prefix are not all zero"):
            ipam.subnet("10.32.0.1/24")
        with pytest.raises(IpamError, match="its last address is the last one there is"):
            await Hub().start(9, universe=Subnet.parse("240.0.0.0/4"))


async def test_nothing_is_answered_or_told_before_it_is_durable() -> None:
    async with hub("seed=::1", "observer") as made:
        one = made.peers[1]
        await one.prime()
        made.gossip()
        await made.peers[2].prime()
        journal = made.journals[1]
        journal.gate.clear()
        answer = asyncio.create_task(one.allocate("c1"))
        asked = asyncio.create_task(made.peers[2].allocate("c2"))
        await asyncio.sleep(0.1)
        made.gossip()
        assert not answer.done()
        assert not asked.done()
        assert not [each for each in made.sent if each[0] == 1 and each[2][0] == Kind.RING_UPDATE and each[1] == 2]
        journal.gate.set()
        assert str(await answer) == "10.32.0.1/24"
        assert str(await asked) == "10.32.0.192/24"


async def test_many_clients_share_a_commit() -> None:
    async with hub("consensus=1") as made:
        ipam, journal = made.peers[1], made.journals[1]
        await ipam.prime()
        before = journal.commits
        got = await asyncio.gather(*(ipam.allocate(f"c{number}") for number in range(100)))
        assert len(set(got)) == 100
        assert journal.commits - before <= 3


async def test_a_journal_that_fails_costs_those_who_wait_and_nothing_else() -> None:
    async with hub("consensus=1") as made:
        ipam, journal = made.peers[1], made.journals[1]
        await ipam.allocate("c1")
        journal.trouble = "unable to write /var/lib/weave: no space left on device"
        results = await asyncio.gather(
            *(ipam.allocate(f"d{number}") for number in range(3)), ipam.delete("c1"), return_exceptions=True
        )
        assert [(type(each), str(each)) for each in results] == [(Unavailable, journal.trouble)] * 4
        assert list(ipam.owned()) == ["c1"]
        assert ipam.report()["ActiveIPs"] == 1
        journal.trouble = None
        assert str(await ipam.allocate("d1")) == "10.32.0.2/24"


async def test_consensus_donation_and_restart() -> None:
    async with hub("consensus=2", "consensus=2", "observer") as made:
        first = await made.peers[1].allocate("a")
        second = await made.peers[2].allocate("b")
        third = await asyncio.wait_for(made.peers[3].allocate("c"), WAIT)
        assert len({first.addr, second.addr, third.addr}) == 3
        await made.peers[3].claim("d", Cidr(ip_address("10.32.0.50"), 24))
        with pytest.raises(IpamError) as raised:
            await made.peers[3].claim("e", first)
        assert str(raised.value) == f"address {first} is owned by other peer 00:00:00:00:00:01 (host1)"
        held = dict(made.peers[3].owned())
        again = await made.restart(3, "observer")
        assert again.owned() == held
        assert await again.allocate("c") == third
        made.gossip()
        await until(lambda: len({str(each.report()["Entries"]) for each in made.peers.values()}) == 1)
        assert not made.errors


async def test_a_claim_waits_for_its_owner_and_gives_up() -> None:
    async with hub("seed=::1,::2", "seed=::1,::2") as made:
        one = made.peers[1]
        made.cut.add(2)
        address = Cidr(ip_address("10.32.0.200"), 24)
        await one.claim("lenient", address, no_error_on_unknown=True)
        assert one.report()["PendingClaims"] == [{"Ident": "lenient", "CIDR": {"Addr": "10.32.0.200", "PrefixLen": 24}}]
        strict = asyncio.create_task(one.claim("strict", Cidr(ip_address("10.32.0.201"), 24)))
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert not strict.done()
            one._tick()
        with pytest.raises(IpamError) as raised:
            await strict
        assert str(raised.value) == (
            "address 10.32.0.201/24 is owned by other peer 00:00:00:00:00:02 ()"
            " - unknown relay destination: 00:00:00:00:00:02"
        )
        made.cut.clear()
        one._tick()
        await until(lambda: "lenient" in one.owned())


async def test_hand_over_and_take_over() -> None:
    async with hub("seed=::1,::2", "seed=::1,::2") as made:
        one, two = made.peers[1], made.peers[2]
        await one.allocate("a")
        await one.shut_down()
        with pytest.raises(Unavailable, match="Allocate request for b cancelled: this router left the ring"):
            await one.allocate("b")
        await until(lambda: two.report()["Entries"][0]["Peer"] == "00:00:00:00:00:02")
        assert one.owned() == {}
        assert made.journals[1].owned == {}
        assert await two.take_over("nobody") == 0
        assert await two.take_over("host2") == 0


async def test_only_a_dead_peer_is_taken_from() -> None:
    async with hub("seed=::1,::2", "seed=::1,::2") as made:
        made.gossip()
        # Everything said in this turn of the loop is heard in the next.
        await asyncio.sleep(0)
        with pytest.raises(IpamError, match=r"00:00:00:00:00:01\(host1\) is reachable"):
            await made.peers[2].take_over("host1")
        made.cut.add(1)
        assert made.peers[2].metrics()["weave_ipam_unreachable_percentage"] == 50
        assert await made.peers[2].take_over("host1") == 128
        assert made.peers[2].metrics()["weave_ipam_unreachable_count"] == 0


async def test_waiting_has_a_reason_and_may_have_an_end() -> None:
    async with hub("consensus=3", "observer") as made:
        with pytest.raises(Unavailable, match=r"no ring yet: 2 peers must agree and 1 are known"):
            await made.peers[1].allocate("a", timeout=0.05)
        with pytest.raises(Unavailable, match="this router only observes"):
            await made.peers[2].allocate("a", timeout=0.05)
        waiting = asyncio.create_task(made.peers[1].allocate("b"))
        await asyncio.sleep(0.05)
        report = made.peers[1].report()
        assert report["PendingAllocates"] == [f"b {UNIVERSE}"]
        assert report["Paxos"] == {"Elector": True, "KnownNodes": 1, "Quorum": 2, "Patience": 0}
        assert report["Waiting"][0]["Reason"].startswith("no ring yet")
        waiting.cancel()
        await asyncio.sleep(0.05)
        assert made.peers[1].report()["PendingAllocates"] is None


async def test_a_full_range_says_so_and_goes_on_when_an_address_is_free() -> None:
    async with hub("seed=::1") as made:
        ipam = made.peers[1]
        subnet = Subnet.parse("10.32.0.0/30")
        await ipam.allocate("a", subnet)
        await ipam.allocate("b", subnet)
        with pytest.raises(Unavailable, match=r"no free address in 10\.32\.0\.0/30: we own all of it"):
            await ipam.allocate("c", subnet, timeout=0.05)
        waiting = asyncio.create_task(ipam.allocate("c", subnet))
        await asyncio.sleep(0.05)
        await ipam.delete("a")
        assert str(await waiting) == "10.32.0.1/30"


async def test_what_is_found_on_the_host_is_claimed_even_when_all_was_lost() -> None:
    async with hub("seed=::1,::2", "seed=::1,::2") as made:
        two = made.peers[2]
        held = await two.allocate("c")
        made.gossip()
        await asyncio.sleep(0.05)
        made.journals[2].ring, made.journals[2].owned = None, {}
        await two.stop()
        made.journals[2].ring, made.journals[2].owned = None, {}
        again = await made.start(2, "consensus=1", lost=True)
        again.pre_claim([("c", held, True)])
        other = asyncio.create_task(again.allocate("d"))
        await asyncio.sleep(0.05)
        assert int((await other).addr) > int(held.addr)
        assert again.owned()["c"].is_container


async def test_conflicts_of_clusters_end_the_connection_with_the_texts_people_know() -> None:
    async with hub("seed=::1", "seed=::2") as made:
        await made.peers[1].prime()
        await made.peers[2].prime()
        made.gossip()
        await until(lambda: len(made.errors) == 2)
        assert (
            "IP allocation was seeded by different peers (received: [00:00:00:00:00:01(host1)],"
            " ours: [00:00:00:00:00:02(host2)])"
        ) in made.errors
        made.errors.clear()
        await made.start(3, "seed=::3", Subnet.parse("10.64.0.0/16"))
        state = made.peers[1].gossip()
        made.deliver(3, "on_gossip", state)
        await until(lambda: made.errors)
        assert made.errors[0].startswith("IP allocation was seeded by different peers")


async def test_whoever_uses_nothing_leaves_its_ring_for_that_of_others() -> None:
    async with hub("seed=::1", "seed=::2") as made:
        one, two = made.peers[1], made.peers[2]
        await one.allocate("c")
        await two.allocate("c")
        await two.allocate("names")
        with pytest.raises(IpamError, match=r"its addresses are in use: 10\.32\.0\.1 \(c\)"):
            await two.rejoin("names")
        await two.delete("c")
        made.cut = {2}
        await two.rejoin("names")
        assert not two.ready and not two.owned()
        with pytest.raises(IpamError, match="no ring here"):
            await two.rejoin()
        two = await made.restart(2, "seed=::2", lost=True)
        assert not two.ready
        made.cut = set()
        made.errors.clear()
        made.gossip()
        assert str(await two.allocate("d")) != "10.32.0.1/24"
        made.gossip()
        await asyncio.sleep(0.05)
        assert not made.errors
        assert one.report()["Entries"][0]["Peer"] == "00:00:00:00:00:01"


async def test_the_end_answers_whoever_waits() -> None:
    async with hub("consensus=3") as made:
        waiting = asyncio.create_task(made.peers[1].allocate("b"))
        await asyncio.sleep(0.02)
        await made.peers.pop(1).stop()
        with pytest.raises(Unavailable, match="the router is stopping"):
            await waiting
