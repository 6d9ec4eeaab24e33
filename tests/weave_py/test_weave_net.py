"""Coming from Weave Net and going back: what its file says is taken over once, and given back as it would write it."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest

from mesh import gob
from mesh.names import PeerName, format_peer_name
from tests.vectors import ROOT
from weave_py import bolt, weave_net
from weave_py.store import Store, StoreError
from weave_py.weave_net import Held, WeaveNetError, WeaveNetState

SAMPLE = ROOT / "api" / "boltdb-sample-host2.db"
EXPECTED = json.loads((ROOT / "api" / "boltdb-sample-host2.expected.json").read_text())
VALUES = json.loads((ROOT / "ipam" / "persistence_values.json").read_text())["values"]


def as_expected(state: WeaveNetState) -> dict[str, Any]:
    """A state in the words of the sample's description."""
    return {
        "directPeers": list(state.direct_peers),
        "owned_readable": {
            ident: {"IsContainer": held.is_container, "Cidrs": list(held.cidrs)} for ident, held in state.owned.items()
        },
        "peername": state.peer_name,
    }


def test_the_sample() -> None:
    state = weave_net.read(str(SAMPLE))
    found = as_expected(state)
    assert found == {key: EXPECTED[key] for key in found}
    top = bolt.parse(SAMPLE.read_bytes())[b"top"]
    assert isinstance(top, dict) and state.ring == top[b"ring"]


@pytest.mark.parametrize("value", VALUES, ids=[f"{n}-{value['key']}" for n, value in enumerate(VALUES)])
def test_stored_values(value: dict[str, Any]) -> None:
    content, key = bytes.fromhex(value["hex"]), value["key"]
    state = weave_net.decode({b"top": {b"version": b"\1\0", key.encode(): content}})
    again = weave_net.decode({b"top": dict(weave_net.encode(state))})
    assert again == state
    if key == "peername":
        assert state.peer_name is not None and format_peer_name(state.peer_name) == value["value"]
        assert weave_net.encode(state)[b"peername"] == content
    elif key == "ring":
        assert weave_net.encode(state)[b"ring"] == content
    elif key == "ownedAddresses":
        assert {
            ident: (held["IsContainer"], [f"{cidr['Addr']}/{cidr['PrefixLen']}" for cidr in held["Cidrs"]])
            for ident, held in value["value"].items()
        } == {ident: (held.is_container, list(held.cidrs)) for ident, held in state.owned.items()}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({b"version": b"\2\0"}, "it has version 0200, and only 01 is known"),
        ({b"peername": gob.encode(gob.UINT, 1 << 48)}, "its peer name 0x1000000000000 is longer than 48 bits"),
        ({b"peername": b"\x03\x06\x00"}, "gob: "),
        ({b"ring": b"no gob"}, "gob: "),
        ({b"ownedAddresses": gob.encode(gob.STRING, "text")}, "gob: "),
        ({b"directPeers": {}}, "its bucket 'top' is none of Weave Net"),
    ],
)
def test_values_that_are_none(values: bolt.Bucket, reason: str) -> None:
    with pytest.raises((ValueError, gob.GobError), match=reason):
        weave_net.decode({b"top": values})


def test_a_prefix_that_is_none() -> None:
    fields = [gob.StructField("Addr", "Addr", gob.UINT), gob.StructField("PrefixLen", "PrefixLen", gob.INT)]
    cidr = gob.Struct("CIDR", fields)
    held = gob.Struct("ownedData", [gob.StructField("Cidrs", "Cidrs", gob.ListOf(cidr))])
    content = gob.encode(gob.MapOf(gob.STRING, held), {"a": {"Cidrs": [{"Addr": 1, "PrefixLen": 33}]}})
    with pytest.raises(ValueError, match="it holds an address with prefix length 33"):
        weave_net.decode({b"top": {b"ownedAddresses": content}})


def test_imported_at_the_first_start_and_only_then(tmp_path: Path) -> None:
    prefix = str(tmp_path / "weave")
    shutil.copy(SAMPLE, f"{prefix}data.db")
    before = Path(f"{prefix}data.db").stat()
    store = Store(prefix)
    assert store.imported == f"{prefix}data.db"
    found = as_expected(store.weave_net_state())
    assert found == {key: EXPECTED[key] for key in found}
    assert store.ring() == weave_net.read(str(SAMPLE)).ring
    assert not store.was_running() and store.lost is None
    after = Path(f"{prefix}data.db").stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    assert Path(f"{prefix}data.db").read_bytes() == SAMPLE.read_bytes()
    store.commit_addresses(b"a later ring", {"ctr2": None})
    store.close()

    store = Store(prefix)
    assert (store.imported, store.ring(), list(store.owned())) == (None, b"a later ring", ["weave:expose"])
    store.close()


def test_a_file_with_nothing_in_it(tmp_path: Path) -> None:
    """The image of Weave Net ships one."""
    (tmp_path / "weavedata.db").write_bytes(bolt.build({b"top": {b"version": b"\1\0"}}))
    store = Store(str(tmp_path / "weave"))
    assert store.imported is not None
    assert (store.peer_name(), store.ring(), store.owned(), store.direct_peers()) == (None, None, {}, [])
    store.close()


def test_a_file_that_cannot_be_read_stops_the_first_start(tmp_path: Path) -> None:
    path = tmp_path / "weavedata.db"
    path.write_bytes(b"garbage" * 1000)
    for _ in range(2):
        with pytest.raises(StoreError) as refused:
            Store(str(tmp_path / "weave"))
        assert str(refused.value) == (
            f"unable to read {path}: it has no valid meta page; move it away to start without what it holds"
        )
    assert path.read_bytes() == b"garbage" * 1000
    path.unlink()
    Store(str(tmp_path / "weave")).close()


def test_a_running_weave_net_router_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weavedata.db"
    shutil.copy(SAMPLE, path)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"weavedata\.db is in use by a Weave Net router: stop that one first"):
            Store(str(tmp_path / "weave"))
        with pytest.raises(WeaveNetError, match="is in use"):
            weave_net.write(str(path), WeaveNetState())
    store = Store(str(tmp_path / "weave"))
    assert store.peer_name() == 2
    store.close()


def test_there_and_back_again(tmp_path: Path) -> None:
    prefix = str(tmp_path / "weave")
    shutil.copy(SAMPLE, f"{prefix}data.db")
    store = Store(prefix)
    ring = store.ring()
    store.commit_addresses(
        None, {"new": Held(True, ("10.38.0.7/12", "fd00::7/64")), "six": Held(True, ("fd00::8/64",))}
    )
    store.add_name("db.weave.local.", "weave:extern", "10.38.0.7")
    store.set_exposed("10.38.0.1/12", True)
    store.set_flag("peer-reclaim", "ok")
    assert store.hand_back() == f"{prefix}data.db"
    store.close()
    assert Path(f"{prefix}data.db.before").read_bytes() == SAMPLE.read_bytes()

    theirs = weave_net.read(f"{prefix}data.db")
    assert (theirs.peer_name, theirs.ring, theirs.flags) == (2, ring, {"peer-reclaim": "ok"})
    assert theirs.owned == {
        "ctr2": Held(False, ("10.38.0.0/12",)),
        "weave:expose": Held(False, ("10.38.0.1/12",)),
        "new": Held(True, ("10.38.0.7/12",)),
    }
    assert list(theirs.direct_peers) == EXPECTED["directPeers"]

    # Weave Net runs and changes it; whoever comes back begins with what it says now.
    later = WeaveNetState(PeerName(2), ring, {"theirs": Held(True, ("10.38.0.9/12",))}, ("192.168.77.14",))
    weave_net.write(f"{prefix}data.db", later)
    store = Store(prefix)
    assert store.imported == f"{prefix}data.db"
    assert store.weave_net_state() == later
    assert [name.address for name in store.names()] == ["10.38.0.7"] and len(store.exposed()) == 1
    store.close()
    store = Store(prefix)
    assert store.imported is None
    store.close()


def test_weave_net_ran_here_since(tmp_path: Path) -> None:
    """Somebody went back without a hand-back: nothing is taken, and nothing is kept quiet."""
    prefix = str(tmp_path / "weave")
    shutil.copy(SAMPLE, f"{prefix}data.db")
    for _ in range(2):
        store = Store(prefix)
        assert store.weave_net_wrote == ""
        store.close()
    weave_net.write(f"{prefix}data.db", WeaveNetState(PeerName(2), None, {}, ("later",)))
    for _ in range(2):
        store = Store(prefix)
        assert (store.weave_net_wrote, store.imported) == (f"{prefix}data.db", None)
        assert store.direct_peers() == EXPECTED["directPeers"]
        store.close()
    os.unlink(f"{prefix}data.db")
    store = Store(prefix)
    assert store.weave_net_wrote == ""
    store.hand_back()
    store.close()
    store = Store(prefix)
    assert (store.weave_net_wrote, store.imported) == ("", f"{prefix}data.db")
    store.close()


def test_handed_back_and_gone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "weave"))
    store.commit_addresses(weave_net.read(str(SAMPLE)).ring, {})
    path = store.hand_back()
    store.close()
    os.unlink(path)
    store = Store(str(tmp_path / "weave"))
    assert store.lost == f"the state was handed back to {path}, which is gone"
    store.close()


def test_nothing_is_handed_back_into_a_full_disk(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}/weave'
    code = """if True:
        import sys
        from weave_py import weave_net
        from weave_py.store import Store, StoreError
        weave_net.write(sys.argv[1] + "data.db", weave_net.WeaveNetState(direct_peers=("first",)))
        store = Store(sys.argv[1])
        store.set_direct_peers(["second"])
        with open(sys.argv[1] + "ballast", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1024))
            except OSError:
                pass
        try:
            store.hand_back()
        except StoreError as error:
            print(error)
        store.close()
        print(weave_net.read(sys.argv[1] + "data.db").direct_peers)
        import os
        os.unlink(sys.argv[1] + "ballast")
        store = Store(sys.argv[1])
        print(store.direct_peers())
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, code], capture_output=True, text=True, check=False)
    said, theirs, ours = done.stdout.splitlines()
    assert "unable to write" in said and "no space left on" in said
    assert (theirs, ours) == ("('first',)", "['second']")


def test_addresses_are_what_they_say() -> None:
    state = WeaveNetState(owned={"a": Held(True, ("255.255.255.255/32", "0.0.0.0/0"))})
    assert weave_net.decode({b"top": dict(weave_net.encode(state))}).owned == state.owned
    assert all(ip_interface(cidr) for cidr in state.owned["a"].cidrs)
