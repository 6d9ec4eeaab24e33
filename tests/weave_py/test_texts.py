"""Status texts, reports and templates against captures of a real router."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mesh.names import PeerName
from mesh.status import ConnectionRow, MeshStatus, PeerLinkRow, PeerRow
from tests.vectors import ROOT
from weave_py import report, status_text
from weave_py.template import TemplateError
from weave_py.template_fill import ExecutionError, render

API = ROOT / "api"
SITUATIONS = ["3-nodes-ready", "idle-single", "encrypted", "pending", "failed-connections"]


def captured(name: str) -> dict[str, Any]:
    return dict(json.loads((API / f"report.{name}.json").read_text()))


def router_part(text: str) -> list[str]:
    """The lines about the router: version and first section."""
    return text.split("\n\n")[0].splitlines() + text.split("\n\n")[1].splitlines()


@pytest.mark.parametrize("name", SITUATIONS)
def test_overview(name: str) -> None:
    if not (API / f"status.{name}.txt").exists():
        pytest.fail(f"no capture status.{name}.txt")
    ours = router_part(status_text.overview(captured(name)))
    theirs = router_part((API / f"status.{name}.txt").read_text())
    if name == "pending":
        # The report was taken a moment after the status: the counts differ, their form does not.
        ours = [re.sub(r"\d+", "N", line) for line in ours]
        theirs = [re.sub(r"\d+", "N", line) for line in theirs]
        assert len(ours) == len(theirs)
        return
    assert ours == theirs


VIEWS = [("connections", status_text.connections), ("peers", status_text.peers), ("targets", status_text.targets)]


def comparable(text: str) -> list[str]:
    """Lines without what changes from moment to moment: ports, retry times, order."""
    text = re.sub(r"retry: .*? \n", "retry: T \n", text)
    text = re.sub(r":\d{4,5} +", ":PORT ", text)
    return sorted(text.splitlines())


@pytest.mark.parametrize("name", SITUATIONS)
@pytest.mark.parametrize(("part", "view"), VIEWS, ids=[part for part, _ in VIEWS])
def test_parts(name: str, part: str, view: Any) -> None:
    path = API / f"status-{part}.{name}.txt"
    if not path.exists():
        assert view(captured(name)) is not None
        return
    theirs = path.read_text()
    if name == "pending":
        assert all(re.match(r"(->|<-) \S+ +(pending|established) ", line) for line in theirs.splitlines()) or part != (
            "connections"
        )
        return
    assert comparable(view(captured(name))) == comparable(theirs)


def test_failed_rows_have_the_reference_form() -> None:
    lines = status_text.connections(captured("failed-connections")).splitlines()
    theirs = (API / "status-connections.connecting-failed.txt").read_text().splitlines()
    ourself = next(line for line in theirs if "ourself" in line)
    assert ourself in lines


def test_our_report_has_the_reference_shape() -> None:
    """Every key of a captured report's router part, in the same order, with the same kinds of values."""
    status = MeshStatus(
        1, 2, False, True, PeerName(1), "host1", 6783,
        (PeerRow(PeerName(1), "host1", 1, 2, 3, (PeerLinkRow(PeerName(2), "h2", "10.0.0.2:6783", True, True),)),),
        ((PeerName(1), PeerName(0)),), ((PeerName(1), (PeerName(2),)),),
        (ConnectionRow("10.0.0.2:6783", True, "established", "sleeve x", {"name": "sleeve", "mtu": 1438}),),
        0, ("10.0.0.2",), {"sleeve": None}, (),
    )  # fmt: skip
    ours, theirs = report.router(status), captured("3-nodes-ready")["Router"]
    rest = ["Interface", "CaptureStats", "MACs"]
    assert [*ours, *rest] == list(theirs)
    for key in ("Peers", "Connections", "UnicastRoutes", "BroadcastRoutes"):
        assert list(ours[key][0]) == list(theirs[key][0])
    built = report.build(status, {key: theirs[key] for key in rest}, "2.8.2")
    assert list(built) == list(captured("3-nodes-ready"))[:4]
    assert built["VersionCheck"] == captured("3-nodes-ready")["VersionCheck"]


@pytest.mark.parametrize("name", SITUATIONS)
def test_json_has_the_reference_bytes(name: str) -> None:
    text = (API / f"report.{name}.json").read_text()
    assert report.to_json(json.loads(text), indent=True) == text.rstrip("\n")


TEMPLATES = [
    ("{{.Version}}", "2.8.2"),
    ("{{.Version}} {{.Router.NickName}}", "2.8.2 host1"),
    ("{{len .Router.Peers}}", "3"),
    ("{{range .Router.Peers}}{{.NickName}},{{end}}", "host1,host2,host3,"),
    ('{{range .Router.Connections}}{{if eq .State "established"}}+{{else}}-{{end}}{{end}}', "++"),
    ("{{range $i, $p := .Router.Peers}}{{$i}}={{$p.NickName}} {{end}}", "0=host1 1=host2 2=host3 "),
    ("{{with .Router}}{{.Name}}{{end}}", "00:00:00:00:00:01"),
    ("{{$n := .Router.NickName}}{{$n}}", "host1"),
    ("{{json .Router.Targets}}", "null"),
    ("{{.Router.NickName | printf \"%s!\"}}", "host1!"),
    ("a {{- .Version -}} b", "a2.8.2b"),
    ("{{if and .Ready (not .Router.Encryption)}}plain{{end}}", "plain"),
    ("{{if false}}{{else if .Ready}}yes{{end}}", "yes"),
    ("{{index .Router.Peers 0 | len | lt 1}}", "true"),
    ("{{/* nothing */}}x", "x"),
    ("{{.Ready}} {{.Router.Port}}", "true 6783"),
]


@pytest.mark.parametrize(("template", "expected"), TEMPLATES)
def test_templates(template: str, expected: str) -> None:
    document = captured("3-nodes-ready")
    document["Router"]["Peers"].sort(key=lambda peer: peer["Name"])
    document["Router"]["Targets"] = None
    assert render(template, document) == expected


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{", "template: format:1: unclosed action"),
        ("{{.A", "template: format:1: unclosed action"),
        ("{{if .Ready}}", "unexpected EOF"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{template \"x\"}}", "unsupported action {{template}}"),
        ("{{nosuch .}}", 'function "nosuch" not defined'),
        ("{{}}", "missing value for command"),
        ("{{$x}}", "undefined variable"),
    ],
)
def test_templates_that_cannot_be_read(template: str, text: str) -> None:
    with pytest.raises(TemplateError, match=re.escape(text)):
        render(template, {"Ready": True})


@pytest.mark.parametrize("template", ["{{.Router.Nope}}", "{{.Version.X}}", "{{index .Router 5}}", "{{.Ready 1}}"])
def test_templates_that_cannot_be_filled(template: str) -> None:
    with pytest.raises(ExecutionError):
        render(template, captured("idle-single"))


def test_version_check_reads_as_text() -> None:
    assert render("{{.V}}", {"V": report.VersionCheck(Enabled=False)}) == "version check update disabled"


def test_every_capture_was_looked_at() -> None:
    assert Path(API).is_dir()
    assert len(list(API.glob("status*.txt"))) > 30
