"""The courier alone: what it does without a router, against a router that misbehaves, on a node that has nothing."""

import array
import json
import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni.build_courier import build
from cni.spool import Spool
from cni.wire import MAX_ANSWER, MAX_INPUT, Answer, Role, decode_request, request_size, spool_name
from tests.cni.plugin import COURIER, Plugin

_SANITIZE = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The courier with the sanitizers in it."""
    target = tmp_path_factory.mktemp("courier") / "courier"
    build(target, *_SANITIZE)
    return target


@pytest.fixture
def plugin(tmp_path: Path, checked: Path) -> Plugin:
    return Plugin(tmp_path, tmp_path / "router.sock", tmp_path / "spool", checked)


@pytest.fixture
def router(plugin: Plugin) -> Iterator[Callable[[Callable[[socket.socket], None]], None]]:
    """Something that listens, and treats every caller as it is told."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(plugin.socket))
    listener.listen()
    treatments: list[Callable[[socket.socket], None]] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                treatments[-1](connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield treatments.append
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def read_request(connection: socket.socket) -> tuple[bytes, list[int]]:
    descriptors = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(20, socket.CMSG_SPACE(16))
    for _, _, payload in ancillary:
        descriptors.frombytes(payload)
    size = request_size(data)
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data, list(descriptors)


def test_size_and_dependencies() -> None:
    assert len((COURIER.parent / "courier.c").read_text().splitlines()) < 300
    found = subprocess.run(["file", "-L", COURIER], capture_output=True, text=True, check=False).stdout
    assert "dynamically linked" not in found


def test_version(plugin: Plugin) -> None:
    done = plugin.call("VERSION")
    assert done.document == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("", 11)])
def test_without_a_router(plugin: Plugin, command: str, code: int) -> None:
    done = plugin.call(command, "c1", "/proc/self/ns/net")
    assert (done.status, done.document["code"]) == (1, code)
    assert done.document["msg"] == (
        f"the weave router does not answer on {plugin.socket}: No such file or directory; is it running on this node?"
    )


def test_a_release_waits(plugin: Plugin) -> None:
    for arguments in ("A=1;B=2", "B=2;A=1"):
        done = plugin.call("DEL", "c1", "/gone", configuration=b"{}", arguments=arguments)
        assert (done.status, done.text) == (0, "")
        assert f"the release waits for it in {plugin.spool}" in done.notes
    plugin.call("DEL", "c1", interface="net1", name="weave-ipam")
    spool = Spool(plugin.spool)
    names = [spool_name(Role.NET, "c1", "eth0"), spool_name(Role.IPAM, "c1", "net1")]
    assert spool.waiting() == sorted(names)
    request = spool.read(names[0])
    assert (request.role, request.variable("CONTAINERID"), request.variable("IFNAME")) == (Role.NET, "c1", "eth0")
    assert (request.configuration, request.obstacle) == (b"{}", "no such file or directory")


def test_the_spool_is_bounded(plugin: Plugin) -> None:
    plugin.spool.mkdir()
    for number in range(4100):
        (plugin.spool / f"{number:016x}").touch()
    done = plugin.call("DEL", "c1")
    assert (done.status, done.document["code"]) == (1, 11)
    assert "No space left on device" in done.document["msg"]


def test_no_directory_for_the_spool(plugin: Plugin) -> None:
    plugin.spool = Path("/nonexistent/spool")
    assert plugin.call("DEL", "c1").document["code"] == 11


def test_what_is_brought(plugin: Plugin, router: Callable[..., None]) -> None:
    seen: list[tuple[bytes, int]] = []

    def answer(connection: socket.socket) -> None:
        data, descriptors = read_request(connection)
        seen.append((data, os.fstat(descriptors[0]).st_ino))
        os.close(descriptors[0])
        connection.sendall(Answer(b'{"it": "works"}', ("odd",), 7).encode())

    router(answer)
    text = b"x" * MAX_INPUT
    done = plugin.call("ADD", "c1", "/proc/self/ns/net", configuration=text, more={"SECRET": "no", "CNI_NEW": "yes"})
    assert (done.status, done.text, done.notes) == (7, '{"it": "works"}', "weave-cni: odd\n")
    request = decode_request(seen[0][0])
    assert seen[0][1] == os.stat("/proc/self/ns/net").st_ino
    assert request.configuration == text
    assert request.variable("NEW") == "yes"
    assert "SECRET" not in request.environment


def test_too_much_input(plugin: Plugin) -> None:
    done = plugin.call("ADD", "c1", configuration=b"x" * (MAX_INPUT + 1))
    assert done.document["msg"] == f"the network configuration is longer than {MAX_INPUT} bytes"


def test_too_large_an_environment(plugin: Plugin) -> None:
    done = plugin.call("ADD", "c1", more={"CNI_LARGE": "x" * (64 << 10)})
    assert done.document["msg"] == "the variables CNI_* are longer than 65536 bytes"


def test_texts_are_escaped(plugin: Plugin) -> None:
    plugin.socket = plugin.socket.with_name('a"b\\c\nd\u00e4')
    assert 'a"b\\c\nd' in plugin.call("ADD", "c1").document["msg"]


def test_another_name(plugin: Plugin, checked: Path) -> None:
    (plugin.directory / "bridge").symlink_to(checked)
    done = plugin.call("ADD", name="bridge")
    assert (done.status, done.text) == (1, "")
    assert "its name has to be weave-net or weave-ipam" in done.notes


def test_answers_that_are_none(plugin: Plugin, router: Callable[..., None]) -> None:
    """Whatever comes from the socket: an error, never a crash, and a release is kept."""
    randomness = random.Random(20)
    answers = [
        b"",
        b"\0" * 11,
        struct.pack("=III", 0, MAX_ANSWER + 1, 0),
        struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF),
        struct.pack("=III", 256, 0, 0),
        struct.pack("=III", 0, 100, 100) + b"x" * 199,
        *(randomness.randbytes(randomness.randrange(40)) for _ in range(30)),
    ]
    for data in answers:

        def answer(connection: socket.socket, data: bytes = data) -> None:
            _, descriptors = read_request(connection)
            for descriptor in descriptors:
                os.close(descriptor)
            connection.sendall(data)

        router(answer)
        done = plugin.call("ADD", "c1", "/proc/self/ns/net")
        assert "Sanitizer" not in done.notes
        assert (done.status, done.document["code"]) == (1, 11), data
        assert plugin.call("DEL", "c1").status == 0
    assert len(Spool(plugin.spool).waiting()) == 1


def test_a_router_that_hangs_up(plugin: Plugin, router: Callable[..., None]) -> None:
    router(lambda connection: None)
    done = plugin.call("ADD", "c1", configuration=b"x" * MAX_INPUT)
    assert done.document["code"] == 11
    assert "Sanitizer" not in done.notes


def test_on_a_node_that_has_nothing(tmp_path: Path) -> None:
    """An empty root: no Python, no C library, no shell."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/weave-net").write_bytes(COURIER.read_bytes())
    (root / "bin/weave-net").chmod(0o755)
    (root / "spool").mkdir()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(root / "s"))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            read_request(connection)
            connection.sendall(Answer(b'{"it": "works"}').encode())

    thread = threading.Thread(target=serve)
    thread.start()

    def call(command: str, where: str) -> subprocess.CompletedProcess[bytes]:
        environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "WEAVE_CNI_SOCKET": where}
        environment["WEAVE_CNI_SPOOL"] = "/spool/cni"
        program = ["chroot", str(root), "/bin/weave-net"]
        return subprocess.run(
            program, env={**environment, "PATH": os.environ["PATH"]}, input=b"{}", capture_output=True
        )

    assert json.loads(call("VERSION", "/s").stdout)["cniVersion"] == "1.1.0"
    assert call("ADD", "/s").stdout == b'{"it": "works"}'
    thread.join(10)
    listener.close()
    assert call("DEL", "/absent").returncode == 0
    assert len(os.listdir(root / "spool/cni")) == 1
