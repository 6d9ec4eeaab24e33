"""Requests and answers as bytes, and the directory in which releases wait."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.config import parse, version_of
from cni.errors import CniError
from cni.spool import Spool
from cni.wire import (
    HEADER_SIZE,
    Answer,
    Request,
    Role,
    WireError,
    decode_answer,
    decode_request,
    encode_request,
    spool_name,
)
from host.pod_port import PodPort, pod_port

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    st.sampled_from(Role),
    st.dictionaries(st.from_regex(r"CNI_[A-Z]{1,8}", fullmatch=True), WORDS, max_size=5),
    st.binary(max_size=100),
)
def test_a_request_there_and_back(role: Role, environment: dict[str, str], configuration: bytes) -> None:
    request = Request(role, environment, configuration)
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=80))
def test_bytes_that_are_no_request(data: bytes) -> None:
    good = encode_request(Request(Role.NET, {"CNI_COMMAND": "DEL"}, b"{}"))
    for attempt in (data, good[: len(data) % len(good)], good[:HEADER_SIZE] + data):
        try:
            decode_request(attempt)
        except WireError:
            continue


def test_an_answer() -> None:
    assert decode_answer(Answer(b"{}", ("one", "two"), 3).encode()) == (3, b"{}", b"weave-cni: one\nweave-cni: two\n")
    with pytest.raises(WireError):
        decode_answer(Answer(b"{}").encode()[:-1])


def test_the_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "cni")
    assert spool.waiting() == []
    request = Request(Role.NET, {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0"}, b"{}")
    name = spool.keep(request)
    assert name == spool.keep(request) == spool_name(Role.NET, "c1", "eth0")
    (tmp_path / "cni/.123-half").touch()
    (tmp_path / "cni/0123456789abcdef").write_bytes(encode_request(request))
    assert spool.read(name) == request
    with pytest.raises(WireError, match="it is not the release that its name says"):
        spool.read("0123456789abcdef")
    spool.remove("0123456789abcdef")
    spool.remove(name)
    spool.remove(name)
    assert spool.waiting() == []
    (tmp_path / "cni/.123-half").unlink()
    spool.keep(request)
    spool.clear()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("network", ["weave", "", "a b", "x" * 300, "ü"])
def test_what_a_port_says(network: str) -> None:
    port = PodPort(network, "c" * 64, "a-long-name-123", "10.32.0.255/12")
    alias = port.alias()
    assert len(alias.encode()) < 256
    found = pod_port(alias)
    assert found is not None
    assert (found.container, found.interface, found.cidr) == (port.container, port.interface, port.cidr)
    assert found.is_of(network)
    assert not found.is_of("another")
    assert pod_port("some text of somebody") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unexpected end of JSON input"),
        ("notjson", "invalid character 'o' in literal null (expecting 'u')"),
        ("}", "invalid character '}' looking for beginning of value"),
        ("[]", "it is no JSON object"),
    ],
)
def test_what_is_no_configuration(text: str, message: str) -> None:
    with pytest.raises(CniError) as error:
        version_of(text.encode())
    assert str(error.value) == f"decoding version from network config: {message}"


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | WORDS, lambda x: st.lists(x) | st.dictionaries(WORDS, x))
)
def test_any_value_for_any_key(value: object) -> None:
    """A configuration is accepted or refused; nothing else happens."""
    for key in ("bridge", "mtu", "hairpinMode", "ipam", "dns", "runtimeConfig", "args", "cni.dev/valid-attachments"):
        for document in ({key: value}, {"ipam": {"routes": [value], "gateway": value}}, {"args": {"cni": value}}):
            try:
                parse("1.0.0", document, f"IP={value}", "weave")
            except CniError:
                continue
