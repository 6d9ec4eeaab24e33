"""What Weave Net 2.8's plugin said in a recorded run, and what ours says to the same calls, in the same order."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.router import RANGE, Router, wait_until
from tests.clusters import cluster
from tests.cni.plugin import Outcome, Plugin
from tests.namespaces import namespace

_TEXT = (Path(__file__).parents[1] / "vectors/api/cni-transcript.txt").read_text()
_HEAD = re.compile(
    r"### CNI_COMMAND=(\S+) (\S+) CNI_CONTAINERID=(\S*) CNI_NETNS=(\S*) CNI_IFNAME=(\S+)\n"
    r"stdin: (.*)\nstdout: ((?:.|\n)*?)((?:stderr: .*\n)*)\[exit status (\d+)\]"
)
# In the recording two addresses are lost to calls that failed; ours loses none.
_LEAKED = ("10.32.0.6", "10.32.0.4")
# Calls that 2.8 refuses and we do not: newer versions, further verbs, a name for a port that is taken. The last is that
# a release without a router waits instead of failing.
_BETTER = ("incompatible CNI versions", "unknown CNI_COMMAND", "could not create veth pair", "dial tcp")


@dataclass(frozen=True, slots=True)
class Call:
    """One recorded call."""

    command: str
    name: str
    container: str
    namespace: str
    interface: str
    configuration: bytes
    output: str
    notes: str
    status: int


CALLS = [
    Call(command, name, container, path, interface, given.encode(), output.strip(), notes, int(status))
    for command, name, container, path, interface, given, output, notes, status in _HEAD.findall(_TEXT)
]


@dataclass(slots=True)
class Replay:
    """Pods of the recording, by its names for their namespaces."""

    plugin: Plugin
    pods: dict[str, str]
    router: Router

    def call(self, call: Call) -> Outcome:
        path = self.pods.get(call.namespace, call.namespace)
        done = self.plugin.call(
            call.command, call.container, path, call.interface, name=call.name, configuration=call.configuration
        )
        if call.command == "DEL" and not done.status:
            # It is answered before it is done.
            wait_until("the release is done", lambda: call.container not in self.router.get("/ip"), 10)
        return done


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    with cluster(ipam=RANGE) as made, namespace() as one, namespace() as two, namespace() as three, namespace() as four:
        made.start(1, [], "--socket", str(made.directory / "h1/weaver.sock"))
        pods = {f"/var/run/netns/ctr{n}": f"/var/run/netns/{p}" for n, p in enumerate((one, two, three, four), 1)}
        yield Replay(
            Plugin(made.directory, made.directory / "h1/weaver.sock", made.directory / "h1/cni"), pods, made.routers[1]
        )


def test_the_recording_is_read_whole() -> None:
    assert len(CALLS) == _TEXT.count("### ")


def test_replay(replay: Replay) -> None:
    for call in CALLS:
        if any(text in call.output for text in _BETTER):
            continue
        done = replay.call(call)
        assert done.status == call.status, (call, done)
        _compare(call, done)


def _compare(call: Call, done: Outcome) -> None:
    if not call.output:
        assert not done.text
    elif call.command == "VERSION":
        assert set(json.loads(call.output)["supportedVersions"]) < set(done.document["supportedVersions"])
    else:
        expected = json.loads(call.output.replace(*_LEAKED))
        assert _without_addition(done.document, call) == expected, (call, done)
    said = [line.removeprefix("stderr: ") for line in call.notes.splitlines()]
    assert [line for line in said if "removing interface" not in line] == [
        line.removeprefix("weave-cni: ") if line.endswith("missing") else line
        for line in done.notes.splitlines()
        if "removing interface" not in line
    ]


def _without_addition(document: dict[str, Any], call: Call) -> dict[str, Any]:
    """Without what newer versions of the specification want, and ours adds."""
    found = {key: value for key, value in document.items() if key not in ("cniVersion", "interfaces")}
    if '"routes"' not in call.output:
        found.pop("routes", None)
        found.get("ip4", {}).pop("routes", None)
    found["ips"] = [{k: v for k, v in each.items() if k != "interface"} for each in found.get("ips", ())]
    return {key: value for key, value in found.items() if key != "ips" or value}
