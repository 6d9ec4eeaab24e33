"""Commands about addresses and names, with a router that is only its API, and real namespaces for what they make."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from host.bridge import ensure_bridge
from tests.host.views import addresses, links
from tests.namespaces import namespace, run, within
from tests.weave_py import captures
from tests.weave_py.fake_router import FakeRouter, served
from weave_py.cli_names import _answers
from weave_py.client import CliError

Result = tuple[int, str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """A host with a bridge, a container, and a router's API."""

    host: str
    container: str
    router: FakeRouter
    address: str

    def weave(self, *words: str) -> Result:
        """(exit code, output, errors) of a command on the host."""
        command = ["ip", "netns", "exec", self.host, sys.executable, "-m", "weave_py.cli", *words]
        env = {**os.environ, "WEAVE_HTTP_ADDR": self.address, "WEAVE_RUN_DIR": "/nonexistent"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)
        return done.returncode, done.stdout, done.stderr

    def ok(self, *words: str) -> str:
        """The output of a command that succeeds silently."""
        code, output, errors = self.weave(*words)
        assert (code, errors) == (0, ""), errors
        return output


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    router = FakeRouter()
    with namespace() as host, namespace() as container, served(router, tmp_path / "api") as address:
        within(host, lambda: ensure_bridge("weave", "0a:00:00:00:00:01", 1400))
        yield Place(host, container, router, address)


def test_expose_hide_and_others_as_captured(place: Place) -> None:
    place.router.owned["cafebabe0001"] = ["10.32.0.1/12"]
    session = list(captures.session("prime", "dns-args", "expose", "hide", "rmpeer"))
    assert len(session) == 11
    for words, output, code in session:
        assert place.weave("--local", *words.split()) == (code, output, "")
    assert place.router.exposed == {}
    assert place.router.owned["weave:expose"] == []
    assert place.router.names == []
    assert "POST /expose/192.168.200.1/24 skipNAT=true" in place.router.requests


def test_bridge_type_is_that_of_the_session(place: Place) -> None:
    assert place.weave("bridge-type") == (0, "bridge\n", "")
    assert place.weave("bridge-type", "--json") == (0, '"bridge"\n', "")


def test_expose_with_a_name(place: Place) -> None:
    assert place.ok("expose", "-h", "gw.weave.local") == "10.32.0.1\n"
    assert place.router.names == [("weave:expose", "10.32.0.1", "gw.weave.local")]
    assert json.loads(place.ok("expose", "--json")) == ["10.32.0.1/12"]
    assert place.ok("hide") == "10.32.0.1\n"
    assert place.router.names == []


def test_an_address_that_serves_names_is_hidden_but_kept(place: Place) -> None:
    place.router.stays.add("10.32.0.1")
    place.ok("expose")
    assert place.ok("hide") == "10.32.0.1\n"
    assert place.router.owned["weave:expose"] == ["10.32.0.1/12"]
    assert place.ok("hide") == "\n"
    assert place.router.owned["weave:expose"] == ["10.32.0.1/12"]


def test_a_range_out_of_bounds(place: Place) -> None:
    message = "range 172.30.0.0/24 out of bounds: 10.32.0.0/12\n"
    assert place.weave("expose", "net:default", "net:172.30.0.0/24") == (1, "", message)
    assert place.router.owned["weave:expose"] == [], "what was got before is given back"


def test_without_allocation(place: Place) -> None:
    place.router.off.add("ip")
    assert place.weave("expose") == (1, "", "IP address allocation must be enabled to use 'net:'\n")
    assert place.ok("expose", "10.32.0.7/12") == "10.32.0.7\n"
    assert place.ok("attach", "10.32.0.8/12", place.container) == "10.32.0.8\n"
    assert place.ok("detach", "10.32.0.8/12", place.container) == "10.32.0.8\n"
    place.router.off.add("ring")
    assert place.weave("prime")[::2] == (
        1,
        "addresses are not allocated: the router was started without --ipalloc-range\n",
    )


def test_attach_and_detach(place: Place) -> None:
    assert place.ok("attach", place.container) == "10.32.0.1\n"
    assert addresses(place.container, "ethwe") == {"10.32.0.1/12"}
    assert place.ok("attach", place.container) == "10.32.0.1\n"
    assert place.ok("attach", "net:default", "net:10.33.0.0/24", "10.40.0.9/16", place.container) == (
        "10.32.0.1 10.33.0.1 10.40.0.9\n"
    )
    assert place.router.owned[place.container] == ["10.32.0.1/12", "10.33.0.1/24", "10.40.0.9/16"]
    assert all("check-alive=true" in one for one in place.router.requests if one.startswith(("POST", "PUT")))
    found = place.ok("ps")
    assert [line.split()[0] for line in found.splitlines()] == ["weave:expose", place.container]
    assert place.ok("ps", place.container) == found.splitlines(keepends=True)[1]
    (shown,) = json.loads(place.ok("ps", place.container, "--json"))
    assert (shown["Container"], shown["Interface"]) == (place.container, "ethwe")
    assert shown["Addresses"] == found.split()[-3:]
    assert place.ok("detach", "net:10.33.0.0/24", place.container) == "10.33.0.1\n"
    assert place.ok("detach", "--json", "10.40.0.9/16", place.container) == '[\n  "10.40.0.9/16"\n]\n'
    assert place.router.owned[place.container] == ["10.32.0.1/12"]
    assert place.ok("detach", place.container) == "10.32.0.1\n"
    assert place.router.owned[place.container] == []
    assert "ethwe" not in links(place.container)
    assert place.ok("detach", place.container) == "\n"


def test_without_a_router(place: Place) -> None:
    place = replace(place, address=str(Path(place.address).parent / "none"))
    absent = (1, "", "weave container is not present. Have you launched it?\n")
    assert place.weave("attach", place.container) == absent
    assert place.ok("attach", "10.32.0.9/12", "10.33.0.9/24", place.container) == "10.32.0.9 10.33.0.9\n"
    assert place.weave("detach", "net:10.33.0.0/24", place.container) == absent
    assert place.ok("detach", "10.33.0.9/24", place.container) == "10.33.0.9\n"
    assert place.ok("detach", place.container) == "10.32.0.9\n"
    assert "ethwe" not in links(place.container)


def test_an_interface_that_somebody_removed(place: Place) -> None:
    place.ok("attach", place.container)
    run("ip", "-n", place.container, "link", "del", "ethwe")
    assert place.ok("detach", place.container) == "10.32.0.1\n"
    assert place.router.owned[place.container] == []


def test_attach_that_fails_gives_back(place: Place) -> None:
    run("ip", "-n", place.container, "link", "add", "ethwe", "type", "veth", "peer", "name", "else")
    code, output, errors = place.weave("attach", place.container)
    assert (code, output) == (1, "")
    assert errors == "interface ethwe of the container was not made by weave: remove or rename it\n"
    assert place.router.owned[place.container] == []


def test_an_address_of_somebody_else(place: Place) -> None:
    place.router.owned["ctr3"] = ["10.33.2.7/24"]
    code, _, errors = place.weave("attach", "10.33.2.7/24", place.container)
    assert (code, errors) == (1, "Unable to claim: address 10.33.2.7/24 is already owned by ctr3\n")
    assert set(links(place.container)) == {"lo"}


NAMED = ["unshare", "--net", "--uts", "--mount", "sh", "-c"]
SCRIPT = """
hostname web; echo weave.local > /proc/sys/kernel/domainname
mount -t tmpfs tmpfs /etc && echo old > /etc/hosts && echo up && exec sleep 60
"""


@pytest.fixture
def web() -> Iterator[str]:
    """The pid of a process that calls itself web.weave.local, with an /etc of its own."""
    with subprocess.Popen([*NAMED, SCRIPT], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield str(process.pid)
        process.kill()


def test_a_container_is_called_what_it_calls_itself(place: Place, web: str) -> None:
    ident = f"netns:{Path(f'/proc/{web}/ns/net').stat().st_ino}"
    assert place.ok("attach", web) == "10.32.0.1\n"
    assert place.router.names == [(ident, "10.32.0.1", "web.weave.local")]
    assert place.ok("ps", web).split()[::2] == [ident, "10.32.0.1/12"]
    assert place.ok("dns-add", web, "-h", "www.weave.local") == ""
    assert place.ok("dns-add", "10.32.0.77", web) == ""
    assert place.router.names[1:] == [
        (ident, "10.32.0.1", "www.weave.local"),
        (ident, "10.32.0.77", "web.weave.local"),
    ]
    assert place.ok("dns-remove", web, "-h", "www.weave.local") == ""
    assert len(place.router.names) == 2
    assert place.ok("detach", web) == "10.32.0.1\n"
    assert place.router.names == [(ident, "10.32.0.77", "web.weave.local")]
    assert place.ok("dns-remove", web) == ""
    assert place.router.names == []
    assert place.ok("attach", "--without-dns", web) == "10.32.0.1\n"
    assert place.router.names == []


def test_hosts_file(place: Place, web: str) -> None:
    root = Path(f"/proc/{web}/root")
    assert place.ok("attach", "--rewrite-hosts", "--add-host", "db:10.32.0.9", "--add-host=x:10.1.1.1", web)
    lines = (root / "etc/hosts").read_text().splitlines()
    assert lines[0] == "# created by Weave - BEGIN"
    assert [line.split() for line in lines[2:6] if not line.startswith("#")] == [
        ["10.32.0.1", "web.weave.local", "web"],
        ["10.32.0.9", "db"],
        ["10.1.1.1", "x"],
    ]
    assert "127.0.0.1       localhost" in lines
    assert place.weave("attach", "--add-host", "db", web)[::2] == (
        1,
        "--add-host db: give a name and an address, as in db:10.32.0.9\n",
    )
    # What a container puts there is not followed out of it.
    (root / "etc/hosts").unlink()
    (root / "etc/hosts").symlink_to("/etc/passwd")
    code, _, errors = place.weave("attach", "--rewrite-hosts", web)
    assert (code, errors) == (1, f"unable to write /etc/hosts of {web}: Too many levels of symbolic links\n")


def test_names_of_no_container(place: Place) -> None:
    place.ok("dns-add", "10.200.100.123", "10.200.100.124", "-h", "printer.weave.local")
    assert place.router.names == [("weave:extern", f"10.200.100.{last}", "printer.weave.local") for last in (123, 124)]
    place.ok("dns-remove", "10.200.100.123", "-h", "printer.weave.local")
    assert len(place.router.names) == 1
    assert place.weave("dns-add", place.container)[2] == (
        f"{place.container} has no address on the bridge: attach it, or give addresses\n"
    )
    assert place.weave("dns-add", "10.1.1.1", place.container)[2] == (
        f"{place.container} has no host name with a domain: give one with -h\n"
    )


def test_where_names_are_off(place: Place) -> None:
    place.router.off |= {"domain", "name"}
    assert place.ok("dns-args") == ""
    message = "the name service is off: the router was started with --no-dns\n"
    assert place.weave("dns-lookup", "web") == (1, "", message)
    assert place.ok("attach", place.container) == "10.32.0.1\n"


def test_rmpeer(place: Place) -> None:
    assert place.ok("rmpeer", "host2", "nosuch") == "131072 IPs taken over from host2\n0 IPs taken over from nosuch\n"
    assert place.weave("rmpeer", "--strict", "nosuch")[0] == 1
    assert json.loads(place.ok("rmpeer", "--json", "host2")) == {"host2": 131072}


def test_docker_bridge_and_another_bridge(place: Place) -> None:
    run("ip", "-n", place.host, "link", "add", "docker0", "type", "bridge")
    assert place.weave("docker-bridge-ip") == (1, "", "bridge docker0 has no IPv4 address\n")
    run("ip", "-n", place.host, "addr", "add", "172.17.0.1/16", "dev", "docker0")
    assert place.ok("docker-bridge-ip") == "172.17.0.1"
    for _ in range(2):
        assert place.ok("attach-bridge") == ""
    made = links(place.host)
    assert (made["vethwebldocker0"]["master"], made["vethwebgdocker0"]["master"]) == ("weave", "docker0")
    assert made["weave"]["mtu"] == 1400


def test_setup_has_nothing_to_fetch(place: Place) -> None:
    assert place.ok("setup") == ""


# --- the resolver ---

ANSWER = bytes.fromhex(
    "0000 8580 0001 0003 0000 0000"
    "03776562 05776561766505 6c6f63616c 00 0001 0001"
    "c00c 0005 0001 00000001 0002 c00c"
    "c00c 0001 0001 00000001 0004 0a200001"
    "c00c 0001 0001 00000001 0004 0a200002"
)


def test_dns_lookup(place: Place) -> None:
    def serve() -> tuple[socket.socket, socket.socket]:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        return sock, socket.create_server(sock.getsockname())

    asked = []

    def answer(sock: socket.socket) -> None:
        for number in range(4):
            query, client = sock.recvfrom(512)
            asked.append(query[12:-11])
            # The first one is lost, the last one is cut.
            if 0 < number < 3:
                sock.sendto(query[:2] + ANSWER[2:], client)
        sock.sendto(query[:2] + bytes.fromhex("8780 0001 0000 0000 0000") + ANSWER[12:31], client)
        with listener.accept()[0] as connection:
            whole = query[:2] + ANSWER[2:]
            connection.recv(2 + len(query), socket.MSG_WAITALL)
            connection.sendall(len(whole).to_bytes(2, "big") + whole)

    sock, listener = within(place.host, serve)
    with sock, listener:
        place.router.dns_port = sock.getsockname()[1]
        thread = threading.Thread(target=answer, args=(sock,))
        thread.start()
        for name in ("web", "web.weave.local", "web.weave.local."):
            assert place.ok("dns-lookup", name) == "10.32.0.1\n10.32.0.2\n"
        thread.join()
    assert asked == [b"\3web\5weave\5local\0\0\1\0\1"] * 4
    place.router.dns_port = 1
    code, _, errors = place.weave("dns-lookup", "web")
    assert (code, errors) == (9, "the name service at 127.0.0.1:1 does not answer\n")
    assert place.weave("dns-lookup", "x" * 64)[0] == 1


@pytest.mark.parametrize("cut", range(len(ANSWER)))
def test_an_answer_that_is_cut(cut: int) -> None:
    with pytest.raises(CliError, match="bytes that are no answer"):
        _answers(ANSWER[:cut])
