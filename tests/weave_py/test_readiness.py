"""Ready means that containers can be connected: addresses are to be had, and of those who are known one is reached."""

from weave_py.readiness import Readiness


def test_alone_is_ready() -> None:
    assert Readiness(60).obstacle(0, 0, addresses=True, now=0) == ""


def test_not_before_somebody_was_reached() -> None:
    readiness = Readiness(60)
    assert readiness.obstacle(3, 0, addresses=True, now=0) == "none of 3 known peers was reached yet"
    assert readiness.obstacle(3, 0, addresses=True, now=500) == "none of 3 known peers was reached yet"
    assert readiness.obstacle(3, 1, addresses=True, now=501) == ""


def test_cut_off_after_a_while() -> None:
    """A peer that restarts is no reason; nor does the last one that went begin a second time."""
    readiness = Readiness(60)
    assert readiness.obstacle(2, 2, addresses=True, now=100) == ""
    assert readiness.obstacle(2, 0, addresses=True, now=160) == ""
    assert readiness.obstacle(2, 0, addresses=True, now=161) == "none of 2 known peers is reached, for 61 seconds"
    assert readiness.obstacle(2, 1, addresses=True, now=162) == ""
    assert readiness.obstacle(2, 0, addresses=True, now=200) == ""


def test_without_patience_only_addresses_count() -> None:
    readiness = Readiness(0)
    assert readiness.obstacle(2, 0, addresses=True, now=1e6) == ""
    assert readiness.obstacle(2, 2, addresses=False, now=1e6).startswith("addresses are not to be had yet")
