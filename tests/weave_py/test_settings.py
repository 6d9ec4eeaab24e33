"""Flags and what they make: forms, refusals, passwords, what is named as missing."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.weave_py.captures import API
from weave_py.log import options_line
from weave_py.settings import FlagError, SettingsError, check, parse


def bad_flags() -> Iterator[Any]:
    """(arguments, expected text) of the captured refusals."""
    for block in (API / "bad-flags.txt").read_text().split("### weaver ")[1:]:
        command, _, output = block.partition("\n")
        yield pytest.param(command.split(), output.strip(), id=command)


@pytest.mark.parametrize(("arguments", "output"), list(bad_flags()))
def test_bad_flags_are_refused_as_by_the_reference(arguments: list[str], output: str) -> None:
    if output.startswith("FATA"):
        expected = re.sub(r"^FATA: \S+ \S+ ", "", output)
        with pytest.raises(SettingsError) as caught:
            check(*parse(arguments), {})
        assert str(caught.value) == expected
    else:
        with pytest.raises(FlagError) as refused:
            parse(arguments)
        assert f"{refused.value}\nSee 'weave --help'." == output


def settings(*arguments: str, **environment: str) -> Any:
    return check(*parse(arguments), environment)


def test_flag_forms() -> None:
    for form in (["--port", "7000"], ["--port=7000"], ["-port=7000"]):
        assert settings(*form).port == 7000
    assert settings("--no-discovery").discovery is False
    assert settings("--no-discovery=false", "a", "b:7000").peers == ("a", "b:7000")
    assert settings("--", "--odd").peers == ("--odd",)
    with pytest.raises(FlagError, match="flag needs an argument: --port"):
        parse(["--port"])
    for text in ("7_0", " 7", "0x1b", "\u0667", ""):
        with pytest.raises(FlagError, match="invalid syntax"):
            parse(["--port", text])
    with pytest.raises(FlagError, match=r'ParseInt: parsing "9{19}": value out of range'):
        parse(["--port", "9" * 19])
    with pytest.raises(FlagError, match='invalid boolean value "maybe"'):
        parse(["--no-dns=maybe"])


def test_passwords_and_their_precedence(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    file.write_text("new\n\nold\n")
    assert settings("--password-file", str(file)).passwords == (b"new", b"old")
    assert settings("--password=a", WEAVE_PASSWORD="b").passwords == (b"a",)
    assert settings(WEAVE_PASSWORD="b").passwords == (b"b",)
    assert settings(WEAVE_PASSWORD="").passwords == ()
    made = settings("--password=topsecret")
    assert "topsecret" not in repr(made)
    assert "topsecret" not in options_line(dict(made.given))
    file.write_text("\n")
    with pytest.raises(SettingsError, match="holds no password"):
        settings("--password-file", str(file))
    with pytest.raises(SettingsError, match="unable to read"):
        settings("--password-file", str(tmp_path / "none"))


def test_what_is_missing_is_named_once() -> None:
    made = settings("--ipalloc-range", "10.32.0.0/12", "--ipalloc-init", "consensus=3", "--no-dns", "--plugin")
    assert made.missing == ("the Docker plugin",)
    assert made.ipalloc_reclaim is None
    assert settings("--ipalloc-range", "10.32.0.0/12", "--ipalloc-reclaim", "1h30m").ipalloc_reclaim == 5400
    assert str(made.ipalloc_range) == "10.32.0.0/12" and made.ipalloc_init.quorum == 2 and made.names is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port", "65535"], "--port 65535 is out of range"),
        (["--mtu", "99999"], "choose one from 576"),
        (["--mtu", "big"], "is no number"),
        (["--host", "here"], "--host here is no IP address"),
        (["--nickname", "\udcff"], "is not UTF-8"),
        (["--weave-bridge", "sixteen-letters-"], "it has 1 to 15 characters"),
        (["--weave-bridge", "a b"], "is no interface name"),
        (["--trusted-subnets", "10.0.0.0/255.0.0.0"], "invalid CIDR address: 10.0.0.0/255.0.0.0"),
        (["--trusted-subnets", "10.0.0.0/8, 10.0.0.0/9"], "invalid CIDR address:  10.0.0.0/9"),
        (["--conn-limit", "-1"], "at least 0"),
        (["--resume", "10.0.0.1"], "You must not specify an initial peer list in conjunction with --resume"),
        (["--token", "x"], "the discovery service is gone"),
        (["--name", "::"], "invalid peer name format"),
        (["--ipalloc-range", "10.0.0.0/8", "--ipalloc-init", "observer=1"], "observer mode takes no parameter"),
        (["--ipalloc-reclaim", "1h"], "--ipalloc-reclaim specified without --ipalloc-range."),
        (["--ipalloc-range", "10.0.0.0/8", "--ipalloc-reclaim", "1"], 'invalid value "1" for flag --ipalloc-reclaim'),
        (["--ipalloc-range", "10.0.0.0/8", "--ipalloc-init", "consensus=x"], "bad consensus parameter: x"),
    ],
)
def test_values_that_make_no_sense(arguments: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(text)):
        settings(*arguments)
