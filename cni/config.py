"""The network configuration on standard input, and what of it is for us.

Everything that Weave Net 2.8 accepts is accepted; what it refuses is refused in its words, where a runtime shows them.
Source: Kubernetes and CNI spec §1.3; CNI specification 1.1, "Network configuration format".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, IPv4Network, NetmaskValueError, ip_interface
from typing import Any

from cni.errors import INCOMPATIBLE, INVALID_CONFIGURATION, CniError

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_OLDEST = VERSIONS[0]
_BUILT_IN = ("", "weave-ipam")
_VALID = "cni.dev/valid-attachments"
_LITERALS = ("null", "true", "false")


@dataclass(frozen=True, slots=True)
class RouteWish:
    """A route of the configuration; without a gateway of its own it takes the pod's."""

    destination: IPv4Network
    gateway: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Network:
    """A configuration, checked. `mtu` in octets, None for the bridge's; `static` is the address that was asked for."""

    version: str
    name: str
    bridge: str
    mtu: int | None
    hairpin: bool
    subnet: str
    gateway: IPv4Address | None
    routes: tuple[RouteWish, ...]
    static: str
    dns: Mapping[str, Any]
    delegate: str
    previous: Mapping[str, Any] | None
    valid: frozenset[tuple[str, str]] | None = None
    document: Mapping[str, Any] = field(default_factory=dict)


def version_of(configuration: bytes) -> tuple[str, dict[str, Any]]:
    """The version in which to answer, and the whole document. Raises CniError."""
    try:
        document = json.loads(configuration)
    except ValueError as error:
        raise CniError(f"decoding version from network config: {_complaint(configuration, error)}") from error
    if not isinstance(document, dict):
        raise CniError("decoding version from network config: it is no JSON object")
    version = document.get("cniVersion") or _OLDEST
    if version not in VERSIONS:
        supported = " ".join(f'"{each}"' for each in VERSIONS)
        details = f'config is "{version}", plugin supports [{supported}]'
        raise CniError("incompatible CNI versions", INCOMPATIBLE, details)
    return version, document


def parse(version: str, document: Mapping[str, Any], arguments: str, bridge: str) -> Network:
    """What the document says. `arguments` are CNI_ARGS, `bridge` the one that is meant by default. Raises CniError."""
    if _flag(document, "isGateway", False):
        raise CniError("Gateway functionality not supported")
    if _flag(document, "ipMasq", False):
        raise CniError("IP Masquerading functionality not supported")
    ipam = _object(document, "ipam")
    mtu = document.get("mtu") or 0
    if not isinstance(mtu, int) or isinstance(mtu, bool) or mtu < 0:
        raise _wrong("mtu", mtu, "a number of octets")
    kind = _text(ipam, "type")
    previous = document.get("prevResult")
    return Network(
        version=version,
        name=_text(document, "name"),
        bridge=_text(document, "bridge") or bridge,
        mtu=mtu or None,
        hairpin=_flag(document, "hairpinMode", True),
        subnet=_text(ipam, "subnet"),
        gateway=_address(ipam, "gateway"),
        routes=tuple(_route(each) for each in _list(ipam, "routes")),
        static=_static(document, arguments),
        dns=_object(document, "dns"),
        delegate="" if kind in _BUILT_IN else kind,
        previous=previous if isinstance(previous, dict) else None,
        valid=_attachments(document),
        document=document,
    )


def cni_arguments(text: str) -> dict[str, str]:
    """CNI_ARGS by name: KEY=VALUE;KEY=VALUE, in any order."""
    return {name: value for name, equals, value in (each.partition("=") for each in text.split(";")) if equals}


# --- parts ---


def _wrong(name: str, value: object, wanted: str) -> CniError:
    return CniError(f"error parsing network config: {name} is {json.dumps(value)}, not {wanted}", INVALID_CONFIGURATION)


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    if value is not None and not isinstance(value, str):
        raise _wrong(name, value, "a text")
    return value or ""


def _flag(document: Mapping[str, Any], name: str, otherwise: bool) -> bool:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return otherwise if value is None else value


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise _wrong(name, value, "an object")
    return value or {}


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if value is not None and not isinstance(value, list):
        raise _wrong(name, value, "a list")
    return value or []


def _address(document: Mapping[str, Any], name: str) -> IPv4Address | None:
    text = _text(document, name)
    try:
        return IPv4Address(text) if text else None
    except AddressValueError:
        raise _wrong(name, text, "an IPv4 address") from None


def _route(value: object) -> RouteWish:
    if not isinstance(value, dict):
        raise _wrong("routes", value, "a list of routes")
    text = _text(value, "dst")
    try:
        return RouteWish(IPv4Network(text, strict=False), _address(value, "gw"))
    except (AddressValueError, NetmaskValueError, ValueError):
        raise _wrong("dst", text, "an IPv4 network") from None


def _static(document: Mapping[str, Any], arguments: str) -> str:
    """The address that was asked for: by the capability `ips`, by `args`, or by CNI_ARGS."""
    wishes = _list(_object(document, "runtimeConfig"), "ips")
    wishes = wishes or _list(_object(_object(document, "args"), "cni"), "ips")
    given = cni_arguments(arguments).get("IP", "")
    wishes = wishes or [each for each in given.split(",") if each]
    if not wishes:
        return ""
    for wish in wishes:
        try:
            made = ip_interface(wish)
        except ValueError:
            raise _wrong("ips", wish, "an address") from None
        if not isinstance(made, IPv4Interface):
            raise CniError(f"address {wish} was asked for: only IPv4 is supported", INVALID_CONFIGURATION)
    if len(wishes) > 1:
        raise CniError("more than one address was asked for: an interface gets one", INVALID_CONFIGURATION)
    return str(wishes[0])


def _attachments(document: Mapping[str, Any]) -> frozenset[tuple[str, str]] | None:
    if _VALID not in document:
        return None
    found = set()
    for each in _list(document, _VALID):
        if not isinstance(each, dict):
            raise _wrong(_VALID, each, "a list of attachments")
        found.add((_text(each, "containerID"), _text(each, "ifname")))
    return frozenset(found)


def _complaint(configuration: bytes, error: ValueError) -> str:
    """Where the text stops being JSON, in the words in which Go says it where that is at its beginning."""
    text = configuration.decode(errors="replace").lstrip()
    if not text:
        return "unexpected end of JSON input"
    for literal in _LITERALS:
        if text[0] == literal[0]:
            for have, want in zip(text, literal, strict=False):
                if have != want:
                    return f"invalid character '{have}' in literal {literal} (expecting '{want}')"
    if text[0] not in '{["-0123456789':
        return f"invalid character '{text[0]}' looking for beginning of value"
    return str(error)
