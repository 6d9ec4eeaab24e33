"""Texts of addresses, and what blocks of a range are aligned, against the reference's results."""

import json
from typing import Any

import pytest

from ipam.seams import Cidr, IpamError
from tests.vectors import ROOT

CASES: dict[str, Any] = json.loads((ROOT / "ipam" / "cidr.json").read_text())


# Other families are not refused here: whether one is served is decided where addresses are asked for.
@pytest.mark.parametrize("case", [c for c in CASES["parse"] if ":" not in c["in"]], ids=lambda c: c["in"])
def test_cidr_texts(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(IpamError) as raised:
            Cidr.parse(case["in"])
        assert str(raised.value) == case["error"]
    else:
        assert str(Cidr.parse(case["in"])) == case["out"]
