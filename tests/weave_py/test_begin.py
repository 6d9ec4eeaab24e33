"""What a start takes from the state of the last run, and what it leaves behind."""

import logging
from pathlib import Path

import pytest

from ipam import wire
from ipam.ranges import Subnet
from ipam.ring import Ring
from mesh.names import PeerName
from weave_py.begin import leave_former_range
from weave_py.settings import check, parse
from weave_py.store import Store
from weave_py.weave_net import Held

US = PeerName(1)
LOG = logging.getLogger("begin")


def begin(store: Store, universe: str) -> None:
    leave_former_range(check(*parse(["--ipalloc-range", universe]), {}), store, LOG)


def test_another_range_leaves_a_copy_of_the_state(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(f"{tmp_path}/weave")
    ring = wire.encode_ring(Ring(Subnet.parse("10.32.0.0/12")).seeded([US]), US)
    store.set_peer_name(US)
    store.commit_addresses(ring, {"c": Held(True, ("10.32.0.1/12",))})
    store.set_direct_peers(["10.0.0.2"])

    begin(store, "10.32.0.0/12")
    assert (store.ring(), list(store.owned()), caplog.messages) == (ring, ["c"], [])

    begin(store, "10.64.0.0/16")
    copy = f"{tmp_path}/weavedata.sqlite.10.32.0.0-12"
    assert caplog.messages == [
        f"Deleting persisted data for IPAM range 10.32.0.0/12; our range is 10.64.0.0/16; a copy of the state is {copy}"
    ]
    assert (store.peer_name(), store.ring(), store.owned(), store.direct_peers()) == (US, None, {}, ["10.0.0.2"])

    begin(store, "10.128.0.0/16")
    assert len(caplog.messages) == 1, "there is nothing to discard"
    store.close()
    Path(copy).rename(tmp_path / "againdata.sqlite")
    store = Store(f"{tmp_path}/again")
    assert (store.ring(), list(store.owned())) == (ring, ["c"])
    store.close()


def test_a_ring_that_cannot_be_read_is_not_discarded(tmp_path: Path) -> None:
    store = Store(f"{tmp_path}/weave")
    store.commit_addresses(b"ring", {})
    begin(store, "10.64.0.0/16")
    assert store.ring() == b"ring"
    store.close()
