"""What `weave doctor` finds, from reports and facts; and on a real host, that it looks at what is there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.namespaces import namespace, run
from tests.weave_py import captures
from weave_py.doctor import CHECKS, Busy, Facts, as_document, examine, text
from weave_py.doctor_finding import Finding, Severity

HEALTHY = "uniform-3"


def report(name: str = HEALTHY, **parts: Any) -> dict[str, Any]:
    """A captured report of a router that has names to ask upstream."""
    document = {**captures.report(name), **parts}
    if document.get("DNS"):
        document["DNS"] = {**document["DNS"], "Upstream": ["10.0.0.53"]}
    return document


def peer(
    skew: float | None = 0.0, name: str = "00:00:00:00:00:02", differs: dict[str, Any] | None = None
) -> dict[str, Any]:
    found = {"Name": name, "NickName": f"host{name[-1]}", "Says": ["ring"], "Heard": None, "ClockSkew": skew}
    return {**found, "Differs": [differs] if differs else []}


def agreement(*peers: dict[str, Any]) -> dict[str, Any]:
    return {"Agreed": True, "Subjects": [], "Peers": list(peers)}


def connection(state: str, info: str, mtu: int = 0) -> dict[str, Any]:
    attrs = {"name": "sleeve", "mtu": mtu} if mtu else None
    return {"Address": "10.0.0.2:6783", "Outbound": True, "State": state, "Info": info, "Attrs": attrs}


def router(*connections: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"Router": {**captures.report(HEALTHY)["Router"], "Connections": list(connections), **parts}}


def found(facts: Facts, document: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    return [(finding.severity.value, finding.check, finding.what) for finding in examine(facts, document)]


def test_nothing_to_find() -> None:
    assert examine(Facts(), report()) == []
    assert examine(Facts(), None) == []
    assert examine(Facts(), report(Agreement=agreement(peer(0.4), peer(-1.0, "00:00:00:00:00:03")))) == []
    assert text(as_document(Facts(), report())) == f"checked: {', '.join(CHECKS)}; no findings\n"
    assert text(as_document(Facts(root=False), None)) == (
        "checked: state; no findings\n"
        "not checked: mtu, clock, names, connections, agreement, ring (no router answers)\n"
        "not checked: kernel, ports, forwarding (only root may look: run it as root)\n"
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(kernel=(4, 19)), ("error", "kernel", "the kernel is 4.19")),
        (Facts(lacking={"tun": "no such file"}), ("error", "kernel", "this kernel makes no tun: no such file")),
        (Facts(lacking={"vxlan": "old"}), ("warning", "kernel", "this kernel makes no vxlan: old")),
        (
            Facts(busy=[Busy("tcp port 6783", "nc (pid 7)")]),
            ("error", "ports", "tcp port 6783 is in use by nc (pid 7)"),
        ),
        (Facts(obstacles=["chain x drops: add y"]), ("warning", "forwarding", "chain x drops")),
        (Facts(damaged=["/s.damaged-1"]), ("warning", "state", "a state that was damaged is kept as /s.damaged-1")),
        (Facts(state_path="/s", free_bytes=1 << 20), ("error", "state", "1024 KiB are left where /s is")),
    ],
)
def test_of_the_host(facts: Facts, expected: tuple[str, str, str]) -> None:
    assert found(facts, None) == [expected]


def test_what_a_running_router_has_is_not_in_its_way() -> None:
    assert examine(Facts(busy=[Busy("tcp port 6783", "weaver")]), report()) == []
    old = Facts(old_devices=["datapath"])
    assert found(old, report()) == [("warning", "state", "devices of Weave Net 2.8 are left: datapath")]
    assert examine(old, None) == []


@pytest.mark.parametrize(
    ("text_of_it", "remedy"),
    [
        ("dial tcp4 10.0.0.2:6783: connect: connection refused, retry: x", "is the router running there"),
        ("dial tcp4 10.0.0.2:6783: i/o timeout, retry: x", "TCP 6783 is blocked"),
        ("Unable to decrypt TCP msg, retry: x", "the passwords differ"),
        ("no working forwarders to 00:00:00:00:00:02(host2), retry: x", "UDP 6783 is blocked"),
        ("Incompatible IP allocation ranges (received: a, ours: b), retry: x", "the same --ipalloc-range"),
        ("IP allocation was seeded by different peers (received: a, ours: b)", "two clusters meet"),
        ("something new", "the log of the router at the other end"),
    ],
)
def test_of_connections(text_of_it: str, remedy: str) -> None:
    (finding,) = examine(Facts(), report(**router(connection("failed", text_of_it))))
    assert finding.severity is Severity.ERROR
    assert finding.what == f"no connection to 10.0.0.2:6783: {text_of_it.removesuffix(', retry: x')}"
    assert remedy in finding.remedy


def test_connections_that_are_no_fault() -> None:
    ourselves = connection("failed", "cannot connect to ourself, retry: never")
    assert examine(Facts(), report(**router(ourselves, connection("connecting", "")))) == []
    pending = connection("pending", "sleeve 00:00:00:00:00:02(host2)", 1438)
    assert found(Facts(), report(**router(pending)))[0][1:] == (
        "connections",
        "the connection to 10.0.0.2:6783 (00:00:00:00:00:02(host2)) carries no frames yet",
    )


@pytest.mark.parametrize("name", ["failed-connections", "pending"])
def test_captured_troubles(name: str) -> None:
    assert {finding.check for finding in examine(Facts(), report(name))} & {"connections", "names"}


def test_of_mtu() -> None:
    document = report(**router(connection("established", "sleeve 00:00:00:00:00:02(host2)", 1414)))
    assert examine(Facts(bridge_mtu=65521), document) == examine(Facts(bridge_mtu=1414), document) == []
    (finding,) = examine(Facts(bridge_mtu=8900), document)
    assert (finding.check, "--mtu 1414" in finding.remedy) == ("mtu", True)
    narrow = report(**router(connection("established", "sleeve 00:00:00:00:00:02(host2)", 1200)))
    assert found(Facts(bridge_mtu=65521), narrow) == [
        (
            "warning",
            "mtu",
            "the connection to 00:00:00:00:00:02(host2) at 10.0.0.2:6783 carries 1200 octets; IPv6 needs 1280",
        )
    ]


def test_of_names() -> None:
    row = connection("failed", 'local "a" and remote "b" peer names collision, retry: never')
    (finding,) = examine(Facts(), report(**router(row)))
    assert (finding.check, "give one of them a --name" in finding.remedy) == ("names", True)
    peers = [
        {
            "Name": f"00:00:00:00:00:0{n}",
            "NickName": "debian",
            "UID": n,
            "ShortID": n,
            "Version": 1,
            "Connections": None,
        }
        for n in (1, 2)
    ]
    assert found(Facts(), report(**router(Peers=peers))) == [
        ("warning", "names", "2 peers have the nickname debian: 00:00:00:00:00:01, 00:00:00:00:00:02")
    ]
    lonely = report("dns-entries")
    lonely["DNS"]["Upstream"] = None
    assert any("no upstream name server" in what for _, _, what in found(Facts(), lonely))


def test_of_links() -> None:
    def entry(number: int, *links: int) -> dict[str, Any]:
        name = f"00:00:00:00:00:0{number}"
        rows = [{"Name": f"00:00:00:00:00:0{link}", "Established": True} for link in links]
        return {"Name": name, "NickName": f"h{number}", "UID": number % 9, "Connections": rows or None}

    fine = report(**router(Peers=[entry(1, 2), entry(2, 1, 9, 8), entry(9)]))
    assert examine(Facts(), fine) == []
    (finding,) = examine(Facts(), report(**router(Peers=[entry(1, 2), entry(2)])))
    assert finding.what == (
        "00:00:00:00:00:01(h1) says it is connected to 00:00:00:00:00:02(h2), which does not say so"
    )


def test_whose_clock_is_wrong() -> None:
    def clocks(*skews: float | None) -> list[tuple[str, str, str]]:
        peers = [peer(skew, f"00:00:00:00:00:0{number}") for number, skew in enumerate(skews, start=2)]
        return found(Facts(), report(Agreement=agreement(*peers)))

    assert clocks(None, 4.9, -4.9) == []
    assert clocks(75.2) == [("warning", "clock", "the clock of 00:00:00:00:00:02(host2) is 75 s ahead")]
    assert clocks(0.0, -75.2, 0.1) == [("warning", "clock", "the clock of 00:00:00:00:00:03(host3) is 75 s behind")]
    # If everybody else is off by the same, it is us.
    assert clocks(75.2, 75.0, 74.9) == [("warning", "clock", "the clock of this host is 75 s behind")]
    assert clocks(75.2, 75.0, -30.0) == [
        ("warning", "clock", "the clock of this host is 75 s behind"),
        ("warning", "clock", "the clock of 00:00:00:00:00:04(host4) is 30 s behind"),
    ]
    document = report("dns-entries")
    document["DNS"]["ClockSkews"] = {"00:00:00:00:00:09": -4000}
    (severity, check, what) = found(Facts(), document)[0]
    assert (severity, check) == ("error", "clock")
    assert what.startswith("the clock of 00:00:00:00:00:09 is 4000 s behind; its names are not taken")


def test_of_agreement() -> None:
    difference = {
        "Subject": "ring",
        "Since": "2026-01-01T00:00:00Z",
        "Theirs": {"Digest": "1", "Count": 4},
        "Ours": {"Digest": "2", "Count": 5},
    }
    assert examine(Facts(), report(Agreement=agreement(peer(differs={**difference, "Lasting": False})))) == []
    assert found(Facts(), report(Agreement=agreement(peer(differs={**difference, "Lasting": True})))) == [
        (
            "error",
            "agreement",
            "00:00:00:00:00:02(host2) holds another ring since 2026-01-01T00:00:00Z (4 entries, ours 5)",
        )
    ]


def test_of_the_ring() -> None:
    ipam = captures.report(HEALTHY)["IPAM"]
    entries = [{**entry, "IsKnownPeer": number > 0} for number, entry in enumerate(ipam["Entries"])]
    (finding,) = examine(Facts(), report(IPAM={**ipam, "Entries": entries}))
    assert (finding.severity, finding.check) == (Severity.WARNING, "ring")
    assert "% of the range belongs to " in finding.what and "weave rmpeer 00:00:00:00:00:0" in finding.remedy
    waiting = [{"Ident": ident, "Reason": "no free address in 10.32.0.0/30: we own all of it"} for ident in "abc"]
    assert found(Facts(), report(IPAM={**ipam, "Waiting": waiting})) == [
        ("error", "ring", "3 requests for addresses wait: no free address in 10.32.0.0/30: we own all of it")
    ]
    dispute = (
        "10.32.0.0-10.32.0.7 is ours, and X says it is theirs: nothing is given out of it. In use here: a; end these"
    )
    (finding,) = examine(Facts(), report(IPAM={**ipam, "Disputes": [dispute]}))
    assert (finding.what, finding.remedy) == tuple(dispute.split("; "))
    assert found(Facts(), report(IPAM={**ipam, "Orphans": list("abcdef")})) == [
        ("warning", "state", "6 hold addresses and are no containers that are seen here: a, b, c, d and 2 more")
    ]


def test_of_the_state() -> None:
    state = {"Path": "/s", "Imported": None, "Lost": "/s was damaged (x) and is now /s.damaged-1", "WeaveNetWrote": ""}
    assert found(Facts(), report(State=state)) == [("error", "state", state["Lost"])]
    both = {**state, "Lost": None, "WeaveNetWrote": "/weavedata.db"}
    assert found(Facts(), report(State=both)) == [
        ("error", "state", "Weave Net wrote /weavedata.db after this router had begun /s")
    ]


def test_the_worse_first_and_nothing_forged() -> None:
    facts = Facts(lacking={"vxlan": "x"}, busy=[Busy("tcp port 6783", "evil\x1b[2J\nerror   state: all is lost")])
    document = as_document(facts, None)
    assert [finding["Severity"] for finding in document["Findings"]] == ["error", "warning"]
    assert set(document["Findings"][0]) == {"Check", "Severity", "What", "Remedy"}
    lines = text(document).splitlines()
    assert len(lines) == 6 and "\x1b" not in text(document)
    assert json.loads(json.dumps(document)) == document


def test_every_finding_belongs_to_a_check() -> None:
    for finding in examine(Facts(lacking={"tun": "x"}), report("failed-connections")):
        assert isinstance(finding, Finding) and finding.check in CHECKS and finding.remedy


def test_on_a_real_host(tmp_path: Path) -> None:
    """Nothing of ours runs in a fresh namespace; a stranger has the port."""
    with namespace() as place:
        command = ["ip", "netns", "exec", place, sys.executable, "-m", "weave_py.cli", "doctor"]
        flags = ["--db-prefix", str(tmp_path / "weave")]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert done.stdout.startswith("checked: kernel, ports, forwarding, state; no findings\n")
        run("ip", "-n", place, "link", "set", "lo", "up")
        holder = "import socket,time;s=socket.socket(2,2);s.bind(('',6783));print('held',flush=True);time.sleep(60)"
        with subprocess.Popen(
            ["ip", "netns", "exec", place, sys.executable, "-c", holder], stdout=subprocess.PIPE
        ) as stranger:
            assert stranger.stdout is not None and stranger.stdout.readline() == b"held\n"
            (tmp_path / "weavedata.sqlite.damaged-20260101T000000Z").write_bytes(b"")
            done = subprocess.run([*command, *flags, "--json"], capture_output=True, text=True, check=False)
            stranger.kill()
        assert done.returncode == 1
        document = json.loads(done.stdout)
        assert [finding["Check"] for finding in document["Findings"]] == ["ports", "state"]
        what = document["Findings"][0]["What"]
        assert what.startswith("udp port 6783 is in use by ") and what.endswith(f" (pid {stranger.pid})")
        assert os.listdir(tmp_path) == ["weavedata.sqlite.damaged-20260101T000000Z"]


def test_words_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    from weave_py import cli

    assert cli.run(["doctor", "--everything"]) == 1
    assert "doctor      [--db-prefix" in capsys.readouterr().err
