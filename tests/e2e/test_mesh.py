"""Whole routers in network namespaces, with containers that talk to each other."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.demo import PREFIX
from lab.net import LabError, inside, run
from lab.router import wait_until, weave
from lab.traffic import ping, tcp
from tests.clusters import chain_links, cluster, mesh_links
from tests.traffic import everything_passes

ROOT = Path(__file__).parents[2]
HOLD_PORT = "import socket,time;s=socket.socket(2,2);s.bind(('',6783));print('held',flush=True);time.sleep(60)"


@pytest.mark.parametrize("password", [None, "secret"], ids=["plain", "encrypted"])
def test_mesh(password: str | None) -> None:
    with cluster() as made:
        made.start_all(3, password=password)
        made.await_links(mesh_links(3))
        containers = {number: made.container(number) for number in made.routers}
        made.await_routes()
        everything_passes(containers, 10_000_000)
        report = made.routers[1].report()["Router"]
        assert {peer["NickName"] for peer in report["Peers"]} == {"host1", "host2", "host3"}
        mtu = 1414 if password else 1438
        text = weave(made.underlay.host(1), "status", "connections")
        shown = "encrypted   sleeve" if password else "sleeve"
        assert len(re.findall(rf"established {shown} \S+ (encrypted=true)?mtu={mtu}\n", text)) == 2
        assert len(report["MACs"]) >= 3
        # Three minutes are the interop tests' business; here it is seen that nothing falls over at once.
        assert made.neighbours(1) == {2, 3}


@pytest.mark.parametrize("password", [None, "secret"], ids=["plain", "encrypted"])
def test_chain(password: str | None) -> None:
    with cluster() as made:
        made.start_all(3, chain=True, password=password)
        made.await_links(chain_links(3))
        containers = {number: made.container(number) for number in made.routers}
        made.await_routes()
        everything_passes(containers, 3_000_000)
        assert made.neighbours(1) == {2}


def test_over_ipv6() -> None:
    with cluster() as made:
        made.start(1, [])
        made.start(2, [f"[{made.underlay.host(1).address6}]"], "--no-discovery")
        made.await_links(mesh_links(2))
        one, two = made.container(1), made.container(2)
        made.await_routes()
        assert ping(one, "10.32.0.2", count=10)
        tcp(one, two, "10.32.0.2", 3_000_000)
        assert "[fd99::2]" in weave(made.underlay.host(1), "status", "connections")
        attrs = made.routers[1].report()["Router"]["Connections"][0]["Attrs"]
        assert attrs["mtu"] == 1438 - 20


def test_killed_and_restarted() -> None:
    with cluster() as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        containers = {number: made.container(number) for number in made.routers}
        made.await_routes()
        for _ in range(3):
            made.routers[2].stop(kill=True)
            wait_until("the others notice", lambda: made.neighbours(1) == {3}, 10)
            made.start(2, [1, 3])
            made.await_links(mesh_links(3))
        made.await_routes()
        assert ping(containers[2], "10.32.0.1", count=10)
        assert ping(containers[3], "10.32.0.2", count=10)


def test_a_second_router_says_so_in_one_line() -> None:
    with cluster() as made:
        router = made.start(1, [])
        command = [sys.executable, "-m", "weave_py.weaver", "--name", "::9"]
        done = subprocess.run(
            inside(router.host.namespace, *command), capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 1
        assert "vethwe-sleeve is in use: another router runs here" in done.stderr.splitlines()[-1]
        assert router.answers()


def test_a_taken_port_is_said_in_one_line() -> None:
    with cluster() as made:
        host = made.underlay.host(1)
        program = inside(host.namespace, sys.executable, "-c", HOLD_PORT)
        holder = subprocess.Popen(program, stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            command = [sys.executable, "-m", "weave_py.weaver", "--name", "::9"]
            done = subprocess.run(
                inside(host.namespace, *command), capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == 1
            expected = r"FATA: .* listen udp 0\.0\.0\.0:6783: bind: address already in use"
            assert re.match(expected, done.stderr.splitlines()[-1])
        finally:
            holder.kill()
            holder.communicate()


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        ("a", "b", "Unable to decrypt TCP msg|connection reset by peer"),
        (None, "b", "no password specificed, but peer requested an encrypted connection"),
        ("a", None, "password specified, but peer requested an unencrypted connection|connection reset by peer|EOF"),
    ],
)
def test_passwords_that_differ(ours: str | None, theirs: str | None, text: str) -> None:
    with cluster() as made:
        made.start(1, [], password=theirs)
        made.start(2, [1], password=ours)
        wait_until("the error shows", lambda: "failed" in made.routers[2].get("/status/connections"), 10)
        assert re.search(text, made.routers[2].get("/status/connections"))
        assert not made.neighbours(1)


def test_commands_at_run_time() -> None:
    with cluster() as made:
        one = made.start(1, [])
        made.start(2, [])
        host = made.underlay.host(1)
        weave(host, "connect", made.address(2))
        made.await_links(mesh_links(2))
        assert weave(host, "status", "targets") == f"{made.address(2)}\n"
        weave(host, "forget", made.address(2))
        assert weave(host, "status", "targets") == ""
        assert made.neighbours(1) == {2}, "forgetting closes nothing"
        with pytest.raises(LabError, match="should be host"):
            weave(host, "connect", "1.2.3.4:x-y")
        assert '"NickName": "host1"' in weave(host, "status", "--json")
        assert weave(host, "report", "-f", "{{.Router.NickName}}") == "host1"
        assert one.process is not None
        one.process.send_signal(signal.SIGQUIT)
        wait_until("the stacks are in the log", lambda: "Current thread" in one.log, 10)
        assert one.answers()
        assert made.routers[2].stop() == 0
        assert "=== received SIGINT/SIGTERM ===\n*** exiting" in (made.directory / "h2" / "weaver.log").read_text()


def test_launch_and_stop(tmp_path: Path) -> None:
    with cluster() as made:
        host = made.underlay.host(1)
        directories = [f"WEAVE_RUN_DIR={tmp_path}", f"WEAVE_LOG_DIR={tmp_path}"]
        command = inside(host.namespace, "env", *directories, sys.executable, "-m", "weave_py.cli")
        flags = ["--db-prefix", f"{tmp_path}/weave", "--name", "::7"]
        pid = int(run(*command, "launch", "--password=visible", *flags, made.address(2)))
        try:
            listing = run("ps", "-o", "args", "-p", str(pid))
            assert "visible" not in listing
            assert "Encryption: enabled" in run(*command, "status")
            with pytest.raises(LabError, match="weave is already running"):
                run(*command, "launch")
        finally:
            run(*command, "stop")
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
        with pytest.raises(LabError, match="ended at once: FATA"):
            run(*command, "launch", "--mtu", "5", *flags)


def test_a_password_on_the_command_line_does_not_show() -> None:
    with cluster() as made:
        router = made.start(1, [], "--password", "visible")
        assert "visible" not in Path(f"/proc/{router.pid}/cmdline").read_text()
        assert "Encryption: enabled" in router.get("/status")
        assert "visible" not in router.log


def test_trusted_subnets() -> None:
    with cluster() as made:
        for number in (1, 2, 3):
            trusted = "10.99.0.1/32,10.99.0.2/32" if number < 3 else "10.99.0.0/24"
            made.start(number, range(1, number), "--trusted-subnets", trusted, password="secret")
        made.await_links(mesh_links(3))
        rows = made.routers[1].report()["Router"]["Connections"]
        shown = {row["Info"].split("(")[1].rstrip(")"): row["Info"].split()[0] for row in rows}
        assert shown == {"host2": "unencrypted", "host3": "encrypted"}
        one, _ = made.container(1), made.container(2)
        made.await_routes()
        assert ping(one, "10.32.0.2", count=10)


def test_underlay_mtu_changes_under_a_stream() -> None:
    with cluster() as made:
        made.start_all(2, password="secret")
        made.await_links(mesh_links(2))
        one, two = made.container(1), made.container(2)
        made.await_routes()
        assert ping(one, "10.32.0.2", count=10)
        tcp(one, two, "10.32.0.2", 3_000_000)
        for number in (1, 2):
            made.underlay.set_mtu(number, 1300)
        tcp(one, two, "10.32.0.2", 3_000_000)
        tcp(two, one, "10.32.0.1", 3_000_000)

        def verified() -> bool:
            rows = made.routers[1].report()["Router"]["Connections"]
            return bool(rows[0]["Attrs"]["mtu"] == 1300 - 86)

        wait_until("the smaller MTU is known", verified, 20)


@pytest.mark.timeout(300)
def test_cut_and_heal() -> None:
    with cluster() as made:
        made.start_all(3)
        made.await_links(mesh_links(3))
        containers = {number: made.container(number) for number in made.routers}
        made.await_routes()
        made.underlay.cut(3)
        wait_until("the cut is noticed", lambda: made.neighbours(1) == {2}, 100, interval=1)
        assert ping(containers[1], "10.32.0.2", count=5)
        made.underlay.cut(3, down=False)
        made.await_links(mesh_links(3), timeout=120)
        made.await_routes()
        assert ping(containers[1], "10.32.0.3", count=10)


def test_the_demonstration() -> None:
    command = [sys.executable, "-m", "lab.demo", "--check", "--nodes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "check passed" in done.stdout
    assert PREFIX not in run("ip", "netns")


def test_resume() -> None:
    """A router that is started again with --resume knows the peers it was last connected to, typed or told."""
    with cluster() as made:
        made.start(1, [])
        made.start(2, [])
        weave(made.underlay.host(1), "connect", made.address(2))
        made.await_links(mesh_links(2))
        made.routers[1].stop(kill=True)
        made.start(1, [], "--resume")
        made.await_links(mesh_links(2))
        assert f"Restart/resume detected - using persisted peer list: [{made.address(2)}]" in made.routers[1].log
        weave(made.underlay.host(1), "forget", made.address(2))
        made.routers[1].stop()
        made.start(1, [], "--resume")
        assert weave(made.underlay.host(1), "status", "targets") == ""
