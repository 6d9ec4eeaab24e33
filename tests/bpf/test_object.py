"""The compiled object: made of the source that lies beside it, readable, and refused where it is damaged."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bpf.elf import ObjectError, parse
from fastdp.maps import COUNTS, MAX_LINKS, TRAFFIC_SIZE, TREE_SIZE, UPCALL, Config, Kind, Route, Tree, pack_address

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "fastdp/fastdp.bpf.c"
OBJECT = ROOT / "fastdp/fastdp.bpf.o"
CLANG = "14"


def clang_version() -> str:
    if shutil.which("clang") is None:
        return ""
    said = subprocess.run(["clang", "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"clang version (\d+)", said)
    return found[1] if found else ""


def test_the_object_is_what_the_source_makes(tmp_path: Path) -> None:
    version = clang_version()
    if version != CLANG:
        pytest.skip(f"clang {CLANG} made the object, here is {'clang ' + version if version else 'none'}")
    made = tmp_path / "made.o"
    subprocess.run([ROOT / "script/build-bpf", made], check=True, timeout=120)
    assert made.read_bytes() == OBJECT.read_bytes(), "run script/build-bpf and commit what it made"


def test_what_is_in_it() -> None:
    found = parse(OBJECT.read_bytes())
    assert set(found.programs) == {"egress", "ingress", "refuse"}
    assert found.licence == "Dual MIT/GPL"
    sizes = {name: (spec.key_size, spec.value_size) for name, spec in found.maps.items()}
    assert sizes == {
        "config": (4, len(Config(0, 0, 0, 0, 0).pack())),
        "peers": (4, len(Route(Kind.NONE).pack())),
        "trees": (4, TREE_SIZE),
        "sources": (16, 4),
        "remotes": (8, len(pack_address(0, 0))),
        "locals": (8, len(pack_address(0, 0))),
        "events": (0, 8),
        "counts": (4, 8),
        "traffic": (4, MAX_LINKS * TRAFFIC_SIZE),
    }
    assert len(Tree((1,), False).pack()) == TREE_SIZE
    assert all(name in found.maps for program in found.programs.values() for _, name in program.references)


def test_both_sides_count_the_same() -> None:
    text = SOURCE.read_text()
    names = re.search(r"enum count \{(.*?)COUNTS", text, re.S)
    assert names is not None
    in_source = [name.strip().lower().replace("_", "-") for name in names[1].split(",") if name.strip()]
    assert [name.removesuffix("-dropped") for name in in_source] == list(COUNTS)
    assert UPCALL == 24


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"",
        lambda data: b"\x7fELF" + bytes(200),
        lambda data: data[:100],
        lambda data: data[:18] + b"\x3e\0" + data[20:],
        lambda data: data.replace(b"maps\0", b"mups\0"),
        lambda data: data[:-64],
    ],
    ids=["nothing", "no sections", "cut short", "other machine", "no maps", "cut at the end"],
)
def test_damage_is_refused(change: object) -> None:
    assert callable(change)
    with pytest.raises(ObjectError):
        parse(change(OBJECT.read_bytes()))
