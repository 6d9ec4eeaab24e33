"""Peer names by the machine's ids, as the reference makes them (`weaver --print-peer-name --host-root`)."""

from pathlib import Path

import pytest

from host.errors import HostError
from host.identity import SystemIds, choose_name, hashed_name, read_ids, system_name

MACHINE_ID = b"0123456789abcdef0123456789abcdef\n"
UUID = b"4C4C4544-0042-3510-8054-B4C04F4D3332\n"


@pytest.mark.parametrize(
    ("machine_id", "uuid", "name"),
    [
        (MACHINE_ID, UUID, "b2:90:48:6f:19:ae"),
        (b"", UUID, "f6:28:7b:e2:f2:77"),
        (MACHINE_ID, b"", "0a:39:ab:6e:42:c6"),
        (b"aaaabbbbccccddddeeeeffff00001111\n", b"", "42:35:1d:71:f3:a6"),
        (MACHINE_ID, b"4C4C4544-0043-3010-8052-B4C04F4E3132\n", "ca:da:e7:ea:08:da"),
        (b"\n", b"", "f6:c1:1a:32:5a:7b"),
    ],
)
def test_names_are_those_of_the_reference(machine_id: bytes, uuid: bytes, name: str) -> None:
    assert hashed_name(SystemIds(machine_id, uuid)) == name


def put(root: Path, path: str, content: bytes) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def test_no_ids_is_said(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="All system IDs are blank"):
        system_name(str(tmp_path), str(tmp_path))


def test_second_places(tmp_path: Path) -> None:
    put(tmp_path, "var/lib/dbus/machine-id", b"m\n")
    put(tmp_path, "sys/hypervisor/uuid", b"h\n")
    assert read_ids(str(tmp_path), str(tmp_path / "sys")) == SystemIds(b"m\n", b"h\n")
    put(tmp_path, "etc/machine-id", b"e\n")
    put(tmp_path, "sys/class/dmi/id/product_uuid", b"u\n")
    assert read_ids(str(tmp_path), str(tmp_path / "sys")) == SystemIds(b"e\n", b"u\n")


def test_an_empty_machine_id_is_not_replaced(tmp_path: Path) -> None:
    put(tmp_path, "etc/machine-id", b"")
    put(tmp_path, "var/lib/dbus/machine-id", MACHINE_ID)
    put(tmp_path, "sys/class/dmi/id/product_uuid", UUID)
    assert system_name(str(tmp_path), str(tmp_path / "sys")) == "f6:28:7b:e2:f2:77"


def test_an_unreadable_id_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "etc/machine-id").mkdir(parents=True)
    with pytest.raises(HostError, match="machine-id: Is a directory; the peer name depends on it"):
        system_name(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("bridge_mac", "remembered", "name"),
    [
        ("02:00:00:00:00:01", "f6:28:7b:e2:f2:77", "02:00:00:00:00:01"),
        (None, "f6:28:7b:e2:f2:77", "f6:28:7b:e2:f2:77"),
        (None, "02:00:00:00:00:02", "b2:90:48:6f:19:ae"),
        (None, None, "b2:90:48:6f:19:ae"),
    ],
    ids=["the bridge's MAC", "the old style remembered", "another remembered", "nothing remembered"],
)
def test_the_order_of_names(bridge_mac: str | None, remembered: str | None, name: str) -> None:
    assert choose_name(SystemIds(MACHINE_ID, UUID), bridge_mac=bridge_mac, remembered=remembered) == name
