"""Status texts and reports against captures of a real router."""

import json
import re
from datetime import datetime
from typing import Any

import pytest

from mesh.names import PeerName, parse_peer_name
from mesh.status import ConnectionRow, MeshStatus, PeerLinkRow, PeerRow
from tests.weave_py import captures
from weave_py import report, status_text

REPORTS = [name.removeprefix("report.") for name in captures.names("report.*.json")]
# Report and text of these were taken in one moment.
SITUATIONS = ["3-nodes-ready", "idle-single", "encrypted", "failed-connections", "ipam-awaiting-consensus"]
VIEWS = [("connections", status_text.connections), ("peers", status_text.peers), ("targets", status_text.targets)]


def rebuilt(router: dict[str, Any]) -> report.Document:
    """Our report of the mesh that a captured report tells of."""
    fields = {key: router[key] for key in ("Interface", "CaptureStats", "MACs")}
    return report.build(captures.mesh_status(router), fields, "2.8.2")


@pytest.mark.parametrize("name", REPORTS)
def test_report_has_the_reference_bytes(name: str) -> None:
    """From the mesh's own rows back to the captured text: names, order, nulls, escapes, numbers."""
    theirs = captures.report(name)
    services: report.Document = {key: theirs[key] for key in ("IPAM", "DNS", "Plugin") if key in theirs}
    ours = {**rebuilt(theirs["Router"]), **services}
    text = (captures.API / f"report.{name}.json").read_text().rstrip("\n")
    assert report.to_json(ours, indent=True) == text


@pytest.mark.parametrize("name", captures.names("status.*.txt"))
def test_overview(name: str) -> None:
    """Every captured overview comes out of a mesh with its numbers, and of its other services' rows."""
    theirs = re.sub(r"\(up to date; .*\)", "(version check update disabled)", captures.text(name))
    _, router, *others = theirs.split("\n\n")
    document = report.build(captures.status_of_overview(router), {}, "2.8.2")
    sections = [status_text.section(*captures.rows(other).items()) for other in others]
    assert status_text.overview(document) + "".join(sections) == theirs


@pytest.mark.parametrize("name", [name for name in REPORTS if name not in ("plugin-legacy", "uniform-3")])
def test_overview_of_a_report(name: str) -> None:
    """With the services' sections; counts of connections change faster than two requests follow each other."""
    report_ = captures.report(name)
    services: report.Document = {key: report_[key] for key in ("IPAM", "DNS") if key in report_}
    ours = status_text.overview({**rebuilt(report_["Router"]), **services})
    assert ours == captures.text(f"status.{name}")


SERVICES = [("ipam", status_text.ipam), ("dns", status_text.dns)]


@pytest.mark.parametrize(
    ("name", "part", "view"),
    [
        pytest.param(name, part, view, id=f"{part}-{name}")
        for name in REPORTS
        for part, view in SERVICES
        # Another router wrote that text.
        if name != "uniform-3"
        if (captures.API / f"status-{part}.{name}.txt").exists()
    ],
)
def test_services_of_a_report(name: str, part: str, view: Any) -> None:
    assert view(captures.report(name)) == captures.text(f"status-{part}.{name}")


@pytest.mark.parametrize("name", captures.names("status-ipam.*.txt"))
def test_shares_of_the_ring(name: str) -> None:
    """Every captured line comes out of entries of that size; more than one of a peer count together."""
    theirs = captures.text(name)
    entries, active, total = [], 0, 0
    for line in theirs.splitlines():
        found = re.fullmatch(r"(\S+)\((\w*)\) +(\d+) IPs \(.*\) (?:\((\d+) active\)|(- unreachable!)|)", line)
        assert found is not None
        peer, nickname, size, own, lost = found.groups()
        half = int(size) // 2
        row = {"Peer": peer, "Nickname": nickname, "IsKnownPeer": lost is None}
        entries += [{**row, "Size": half}, {**row, "Size": int(size) - half}]
        active, total = int(own) if own else active, total + int(size)
    ours = re.search(r"(\S+)\(\w*\) .* active", theirs)
    ipam = {"Entries": entries or None, "ActiveIPs": active, "RangeNumIPs": total}
    shown = status_text.ipam({"Router": {"Name": ours[1] if ours else "none"}, "IPAM": ipam})
    assert sorted(shown.splitlines()) == sorted(theirs.splitlines())
    assert not ours or shown.startswith(ours[1])


def comparable(text: str) -> list[str]:
    """Lines without what changes from moment to moment: retry times, order."""
    return sorted(re.sub(r"retry: 2.*? \n", "retry: T \n", text).splitlines())


@pytest.mark.parametrize(
    ("name", "part", "view"),
    [
        pytest.param(name, part, view, id=f"{part}-{name}")
        for name in SITUATIONS
        for part, view in VIEWS
        if (captures.API / f"status-{part}.{name}.txt").exists()
    ],
)
def test_parts_of_a_report(name: str, part: str, view: Any) -> None:
    ours, theirs = view(rebuilt(captures.report(name)["Router"])), captures.text(f"status-{part}.{name}")
    assert comparable(ours) == comparable(theirs)


def document(*, connections: tuple[ConnectionRow, ...] = (), peers: tuple[PeerRow, ...] = (), **more: Any) -> Any:
    """A report with these rows."""
    targets = more.pop("targets", ())
    status = MeshStatus(
        1, 2, False, True, PeerName(1), more.pop("nickname", "host1"), 6783, peers,
        (), (), connections, 0, targets, {}, (),
    )  # fmt: skip
    return report.build(status, {}, "2.8.2")


@pytest.mark.parametrize("name", captures.names("status-connections.*.txt"))
def test_connections(name: str) -> None:
    """Every captured line comes out of the row that it shows."""
    theirs = captures.text(name)
    rows = []
    for line in theirs.splitlines():
        parts = re.fullmatch(r"(->|<-) (.{21,}?) (\S+ *) (.*) ((?:\w+=(?:true|\d+))*)", line)
        assert parts is not None
        arrow, address, state, info, shown = parts.groups()
        found = re.findall(r"(encrypted|mtu)=(true|\d+)", shown)
        attrs: dict[str, Any] = {key: value == "true" or int(value) for key, value in reversed(found)}
        named = {**attrs, "name": "sleeve"} if attrs else None
        rows.append(ConnectionRow(address.strip(), arrow == "->", state.strip(), info.strip(), named))
        if info.startswith("encrypted"):
            assert info == f"{'encrypted':<11} {info.split()[1]} {info.split()[2]}"
    assert status_text.connections(document(connections=tuple(rows))) == theirs


@pytest.mark.parametrize("name", captures.names("status-peers.*.txt"))
def test_peers(name: str) -> None:
    theirs = captures.text(name)
    peers = []
    for block in re.findall(r"(?m)^\S.*\n(?: .*\n)*", theirs):
        head, *lines = block.splitlines()
        links = []
        for line in lines:
            arrow, address, label, state = line.split()
            peer, nickname = label.rstrip(")").split("(")
            links.append(
                PeerLinkRow(parse_peer_name(peer), nickname, address, arrow == "->", state == "established")
            )
        own, nickname = head.rstrip(")").split("(")
        peers.append(PeerRow(parse_peer_name(own), nickname, 0, 0, 0, tuple(links)))
    assert status_text.peers(document(peers=tuple(peers))) == theirs


@pytest.mark.parametrize("name", captures.names("status-targets.*.txt"))
def test_targets(name: str) -> None:
    theirs = captures.text(name)
    assert status_text.targets(document(targets=tuple(theirs.splitlines()))) == theirs


def test_nicknames_forge_no_lines() -> None:
    evil = "x)\n           Name: 00:00:00:00:00:09(\x1b[2J"
    link = PeerLinkRow(PeerName(2), evil, "10.0.0.2:6783", True, True)
    row = ConnectionRow("10.0.0.2:6783", True, "established", f"sleeve 00:00:00:00:00:02({evil})", {})
    made = document(connections=(row,), peers=(PeerRow(PeerName(1), evil, 0, 0, 0, (link,)),), nickname=evil)
    assert len(status_text.connections(made).splitlines()) == 1
    assert len(status_text.peers(made).splitlines()) == 2
    assert status_text.overview(made).count("Name: ") == 2
    assert len(status_text.overview(made).splitlines()) == 11
    for view in (status_text.overview, status_text.connections, status_text.peers):
        assert "\x1b" not in view(made)


def test_json_escapes() -> None:
    text = "<a> & \u2028 ü \x01 \""
    assert report.to_json({"x": text}, indent=False) == (
        '{"x":"\\u003ca\\u003e \\u0026 \\u2028 ü \\u0001 \\""}'
    )
    assert json.loads(report.to_json(text, indent=True)) == text


def test_moments_are_written_as_by_go() -> None:
    times = [row["LastSeen"] for name in REPORTS for row in captures.report(name)["Router"]["MACs"] or ()]
    assert times
    for text in times:
        seconds = datetime.fromisoformat(text).timestamp()
        ours = report.moment(seconds)
        assert re.fullmatch(r"[-0-9T:]{19}(\.\d{0,8}[1-9])?Z", ours)
        # A float holds these moments to a quarter of a microsecond, and reading drops what is below one.
        assert abs(datetime.fromisoformat(ours).timestamp() - seconds) < 2e-6
    assert report.moment(0) == "1970-01-01T00:00:00Z"
    assert report.moment(1.5) == "1970-01-01T00:00:01.5Z"
