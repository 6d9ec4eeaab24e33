"""The words of a command line: options are taken out wherever they stand, addresses are recognised by their form.

Source: CLI spec §1, §2.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from weave_py.client import CliError, UsageError

DEFAULT_SUBNET = "default"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An address argument: that very address, or one to be allocated in `subnet` (empty: the default one)."""

    address: IPv4Interface | IPv6Interface | None = None
    subnet: str = ""


def take_flag(words: list[str], flag: str) -> bool:
    """Take every `flag` out of the words; whether there was one."""
    there = flag in words
    words[:] = [word for word in words if word != flag]
    return there


def take_values(words: list[str], flag: str) -> list[str]:
    """Take every `flag value` and `flag=value` out of the words; the values. Raises UsageError on a lone flag."""
    values, kept, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        if word == flag:
            if not rest:
                raise UsageError(f"{flag} needs a value")
            values.append(rest.pop(0))
        elif word.startswith(f"{flag}="):
            values.append(word.partition("=")[2])
        else:
            kept.append(word)
    words[:] = kept
    return values


def take_value(words: list[str], flag: str) -> str:
    """Take the flag out of the words; its last value, or nothing."""
    values = take_values(words, flag)
    return values[-1] if values else ""


def refuse_options(words: Sequence[str]) -> None:
    """What still looks like an option is none of this command. Raises UsageError."""
    for word in words:
        if word.startswith("-"):
            raise UsageError(f"unknown option {word}")


def is_address(word: str) -> bool:
    """Whether a word is meant as an address argument, right or wrong."""
    return word.startswith(("net:", "ip:")) or ("/" in word and word.split("/")[0].replace(".", "").isdecimal())


def wanted(word: str) -> Wanted:
    """What an address argument asks for. Raises CliError."""
    kind = "net" if word.startswith("net:") else "ip"
    text = word.removeprefix(f"{kind}:")
    if (kind, text) == ("net", DEFAULT_SUBNET):
        return Wanted()
    try:
        if "/" not in text:
            raise ValueError
        address = ip_interface(text)
    except ValueError:
        what = "a subnet, as in net:10.40.0.0/24" if kind == "net" else "an address and its prefix, as in 10.32.0.5/12"
        raise CliError(f"invalid address {word!r}: give {what}") from None
    return Wanted(subnet=text) if kind == "net" else Wanted(address)


def is_plain_address(word: str) -> bool:
    """Whether a word is an address without a prefix."""
    try:
        ip_address(word)
    except ValueError:
        return False
    return True


def say(text: str, document: Any, as_json: bool) -> int:
    """Answer a person, or a program; exit code 0."""
    sys.stdout.write(f"{json.dumps(document, indent=2)}\n" if as_json else text)
    return 0


def say_addresses(cidrs: Sequence[str], as_json: bool) -> int:
    """The addresses alone on a line, as scripts expect them; with their prefixes for a program."""
    plain = " ".join(cidr.partition("/")[0] for cidr in cidrs)
    return say(f"{plain}\n", list(cidrs), as_json)
