"""What a Weave Net router left: its rules go when ours are there, and not before; its file is held."""

import asyncio
import fcntl
import logging
import threading
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from host.bridge import ensure_bridge, join_bridges
from host.containers import Attached
from host.errors import HostError
from host.iptables import old_chains
from host.rules import Plan, Rules
from nft.ruleset import Transaction
from tests.host.iptables import iptables, restore, works
from tests.namespaces import namespace, run, within
from tests.vectors import ROOT
from weave_py.settings import Settings, check, parse
from weave_py.takeover import differences, follow, old_router_ended
from weave_py.weave_net import Held

LOG = logging.getLogger("test")
CAPTURE = ROOT / "api/iptables.kube-expect-npc-no-masq-local.txt"
UNENCRYPTED = ("!", "-p", "esp", "-m", "policy", "--dir", "out", "--pol", "none", "-m", "mark", "--mark")


def settings(*words: str) -> Settings:
    values, given, peers = parse([*words, "--name", "0a::1"])
    return check(values, given, peers, {})


@pytest.mark.parametrize("program", ["iptables-nft", "iptables-legacy"])
def test_rules_go_once_ours_are_in_force(program: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not before network policy has its own, and with those that a router with encryption wrote."""
    caplog.set_level(logging.INFO)

    async def take_over() -> None:
        task = asyncio.create_task(follow(settings("--expect-npc"), LOG, 0.02))
        await asyncio.sleep(0.3)
        assert not task.done(), "our rules are not there"
        Rules(Plan("weave", exposed={IPv4Interface("10.32.0.1/12"): True}, expect_npc=True)).apply()
        await asyncio.sleep(0.3)
        assert not task.done(), "those of network policy are not there"
        with Transaction("weave_npc") as change:
            change.ensure_table()
        await asyncio.wait_for(task, 20)

    with namespace() as host:
        works(host, program)
        lines = [line for line in CAPTURE.read_text().splitlines() if "--match-set" not in line]
        restore(host, program, "\n".join(lines).replace("\\'", "'") + "\n")
        iptables(host, program, "-N", "WEAVE-IPSEC-IN")
        iptables(host, program, "-A", "OUTPUT", *UNENCRYPTED, "0x20000/0x20000", "-j", "DROP")
        iptables(host, program, "-A", "OUTPUT", *UNENCRYPTED, "0x8/0x8", "-j", "LOG")
        within(host, lambda: ensure_bridge("weave", "0a:00:00:00:00:01", 1376))
        assert "filter WEAVE-NPC-EGRESS" in within(host, old_chains)
        within(host, lambda: asyncio.run(take_over()))
        assert within(host, old_chains) == []
        forward = iptables(host, program, "-S", "FORWARD").splitlines()[1:]
        assert len(forward) == 3 and all('--comment "weave: ' in line for line in forward)
        assert len(iptables(host, program, "-S", "OUTPUT").splitlines()) == 2
    assert "Removed Weave Net's packet rules: chain ip" in caplog.text or "(legacy)" in caplog.text


def test_a_joined_bridge_stays_joined() -> None:
    """The rule for Docker's containers on our bridge is written again."""
    with namespace() as host:
        works(host, "iptables")
        iptables(host, "iptables", "-t", "nat", "-N", "WEAVE")
        iptables(host, "iptables", "-t", "nat", "-A", "POSTROUTING", "-o", "weave", "-j", "ACCEPT")
        run("ip", "-n", host, "link", "add", "docker0", "type", "bridge")
        within(host, lambda: ensure_bridge("weave", "0a:00:00:00:00:01", 1376))
        within(host, lambda: join_bridges("weave", "docker0"))
        within(host, Rules(Plan("weave")).apply)
        within(host, lambda: asyncio.run(asyncio.wait_for(_with_table(), 20)))
        assert iptables(host, "iptables", "-t", "nat", "-S").splitlines()[-1] == "-A POSTROUTING -o weave -j ACCEPT"
        assert within(host, old_chains) == []


async def _with_table() -> None:
    Rules(Plan("weave", exposed={IPv4Interface("10.32.0.1/12"): True})).apply()
    await follow(settings(), LOG, 0.02)


def test_differences() -> None:
    """By address: the name of a holder is another one for us than for whoever asked for it."""

    def found(ident: str, *cidrs: str) -> Attached:
        return Attached(ident, "vethwepl1", "/run/netns/x", None, "eth0", "", cidrs)

    owned = {"1a2b3c": Held(True, ("10.32.0.1/12",)), "gone": Held(True, ("10.32.0.9/12",))}
    seen = [found("netns:1", "10.32.0.1/12", "fd00::1/64"), found("netns:2", "10.32.0.7/12")]
    assert differences(owned, seen) == [
        "10.32.0.7 is in use here by netns:2 and was nobody's",
        "10.32.0.9 is gone's, who is not seen here",
    ]


def test_a_running_router_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "weave-netdata.db"
    with old_router_ended(str(path), LOG):
        pass
    path.write_bytes(b"x")
    with path.open("rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="a Weave Net router still holds"), old_router_ended(str(path), LOG, 0.1):
            pass
        threading.Timer(0.5, lambda: fcntl.flock(old, fcntl.LOCK_UN)).start()
        with old_router_ended(str(path), LOG), path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
