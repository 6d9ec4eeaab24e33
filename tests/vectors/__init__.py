"""Golden bytes and captures made by real routers, one folder a room, and how tests load them."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent


def load(room: str, file: str) -> list[dict[str, Any]]:
    """The vectors of one file, each a dictionary with a `name`."""
    document = json.loads((ROOT / room / file).read_text())
    vectors = document["vectors"]
    assert vectors, f"{room}/{file} holds no vectors"
    return list(vectors)


def vectors(room: str, file: str) -> pytest.MarkDecorator:
    """Parametrise a test by the vectors of a file: the test takes an argument `vector`."""
    return pytest.mark.parametrize("vector", [pytest.param(v, id=str(v["name"])) for v in load(room, file)])
