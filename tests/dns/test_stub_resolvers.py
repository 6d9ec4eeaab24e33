"""What containers have: the stub resolvers of glibc and musl, and dig, in a namespace with a resolv.conf of its own."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaces import namespace, run

SOURCE = Path(__file__).with_name("lookup.c")
MANY = [f"10.33.0.{number}" for number in range(1, 121)]


@pytest.fixture(scope="module")
def net() -> Iterator[str]:
    """A namespace where the server answers, and whose resolv.conf names it."""
    with namespace() as name:
        etc = Path("/etc/netns") / name
        etc.mkdir(parents=True)
        server = None
        try:
            (etc / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch weave.local\noptions timeout:2 attempts:2\n")
            # Debian's own may have mDNS answer for `.local`.
            (etc / "nsswitch.conf").write_text("hosts: files dns\n")
            command = ["ip", "netns", "exec", name, sys.executable, "-m", "tests.dns.serve"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield name
        finally:
            if server is not None:
                server.kill()
                server.communicate()
            shutil.rmtree(etc, ignore_errors=True)


@pytest.fixture(scope="module", params=["glibc", "musl"])
def lookup(request: pytest.FixtureRequest, net: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A program that asks the C library `request.param`."""
    compiler = {"glibc": "cc", "musl": "musl-gcc"}[request.param]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed: the stub resolver of {request.param} was not tried")
    program = tmp_path_factory.mktemp(request.param) / "lookup"
    static = ["-static"] if request.param == "musl" else []
    run(compiler, "-o", str(program), *static, str(SOURCE))
    return str(program)


def within(net: str, *command: str) -> list[str]:
    """The lines that a command says in the namespace."""
    return run("ip", "netns", "exec", net, *command, check=False).splitlines()


@pytest.mark.parametrize(
    ("asked", "addresses"),
    [
        ("web.weave.local", ["10.32.0.1"]),
        ("web", ["10.32.0.1"]),
        ("WEB.Weave.Local", ["10.32.0.1"]),
        ("db", ["10.32.0.2", "10.32.0.3"]),
        ("six", ["fd00::6"]),
        ("both", ["10.32.0.4", "fd00::4"]),
        ("a.b.weave.local", ["10.32.0.5"]),
    ],
)
def test_names(net: str, lookup: str, asked: str, addresses: list[str]) -> None:
    assert sorted(within(net, lookup, asked)) == addresses


@pytest.mark.parametrize("asked", ["none", "none.weave.local", "none.example.com"])
def test_names_that_nobody_has(net: str, lookup: str, asked: str) -> None:
    (line,) = within(net, lookup, asked)
    assert not line[0].isdigit()


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.32.0.1", "web.weave.local"), ("10.32.0.2", "Db.weave.local"), ("fd00::6", "six.weave.local")],
)
def test_names_of_addresses(net: str, lookup: str, address: str, name: str) -> None:
    assert within(net, lookup, "-x", address) == [name]


def test_more_addresses_than_fit_a_datagram(net: str, lookup: str) -> None:
    found = set(within(net, lookup, "many"))
    # musl asks by TCP from 1.2.4 on; before, it takes what fits.
    assert found <= set(MANY)
    assert len(found) == 120 or ("musl" in lookup and len(found) >= 29)


def test_getent(net: str) -> None:
    assert within(net, "getent", "hosts", "web") == ["10.32.0.1       web.weave.local"]
    assert within(net, "getent", "hosts", "10.32.0.1") == ["10.32.0.1       web.weave.local"]
    lines = within(net, "getent", "hosts", "db")
    assert {line.split()[0] for line in lines} == {"10.32.0.2", "10.32.0.3"}
    assert within(net, "getent", "hosts", "none.weave.local") == []


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("web.weave.local",), ["10.32.0.1"]),
        (("web",), ["10.32.0.1"]),
        (("+search", "web"), ["10.32.0.1"]),
        (("+tcp", "web.weave.local"), ["10.32.0.1"]),
        (("+noedns", "web.weave.local"), ["10.32.0.1"]),
        (("+dnssec", "+nsid", "+subnet=192.0.2.0/24", "web.weave.local"), ["10.32.0.1"]),
        (("six.weave.local", "AAAA"), ["fd00::6"]),
        (("six.weave.local", "A"), []),
        (("-x", "10.32.0.1"), ["web.weave.local."]),
        (("-x", "fd00::6"), ["six.weave.local."]),
        (("weave.local", "NS"), ["ns.weave.local."]),
        (("weave.local", "SOA"), ["ns.weave.local. hostmaster.weave.local. 1 3600 600 86400 1"]),
        (("+noedns", "many.weave.local"), MANY),
        (("+keepopen", "+tcp", "web.weave.local", "web.weave.local"), ["10.32.0.1", "10.32.0.1"]),
    ],
    ids=" ".join,
)
def test_dig(net: str, words: tuple[str, ...], lines: list[str]) -> None:
    if shutil.which("dig") is None:
        pytest.skip("dig is not installed (Debian: bind9-dnsutils)")
    said = within(net, "dig", "+short", "+time=2", "+tries=2", "@127.0.0.1", *words)
    assert sorted(said) == sorted(lines)


@pytest.mark.parametrize(("size", "fits"), [(512, False), (1232, False), (4096, True)])
def test_dig_is_told_what_does_not_fit(net: str, size: int, fits: bool) -> None:
    if shutil.which("dig") is None:
        pytest.skip("dig is not installed (Debian: bind9-dnsutils)")
    said = "\n".join(within(net, "dig", "+ignore", f"+bufsize={size}", "@127.0.0.1", "many.weave.local"))
    assert ("flags: qr aa rd ra;" in said) == fits
    assert ("flags: qr aa tc rd ra;" in said) != fits
    assert "EDNS: version: 0, flags:; udp: 1232" in said
    assert "WARNING: Message parser reports malformed" not in said
