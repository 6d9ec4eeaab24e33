"""The router's flags: Go's flag syntax, every flag of Weave Net 2.8, checked into one record.

Flags of parts that this router does not have are accepted, so that an operator's scripts go on working, and named
in one warning. Texts and exit codes are those that scripts know. Source: CLI spec §3.
"""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

from dns.service import NameSettings, listen_address
from ipam.founding import Init
from ipam.ranges import Subnet
from ipam.seams import IpamError
from mesh.config import DEFAULT_CONNECTION_LIMIT, DEFAULT_PORT
from mesh.names import InvalidPeerNameError, PeerName, parse_peer_name

EXIT_USAGE = 125
REDACTED = "<redacted>"
_SECRET = frozenset(("password", "token"))
_INTEGER = re.compile(r"[-+]?[0-9]+")
_MAX_DIGITS = 20
_INTERFACE_NAME = 15
LEVELS = ("debug", "info", "warning", "warn", "error", "fatal", "panic")


class FlagError(Exception):
    """The command line cannot be read: stderr, exit 125."""


class SettingsError(Exception):
    """The command line can be read and makes no sense: one FATA line, exit 1."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag. `kind`: str, int or bool. `missing`: what it belongs to, where this router has not got it."""

    name: str
    kind: type
    default: str | int | bool
    help: str
    missing: str = ""


def _flags() -> dict[str, Flag]:
    flags = [
        Flag("version", bool, False, "print version and exit"),
        Flag("print-peer-name", bool, False, "print the peer name and exit"),
        Flag("help", bool, False, "print this text"),
        Flag("host", str, "", "local address to listen on and dial from"),
        Flag("port", int, DEFAULT_PORT, "mesh TCP and sleeve UDP port"),
        Flag("min-protocol-version", int, 1, "oldest protocol version to speak, 1 or 2"),
        Flag("resume", bool, False, "connect to the peers of the last run"),
        Flag("weave-bridge", str, "weave", "name of the bridge"),
        Flag("docker-bridge", str, "", "name of Docker's bridge, whose containers stay outside"),
        Flag("datapath", str, "", "accepted and ignored: there is no Open vSwitch"),
        Flag("no-fastdp", bool, False, "carry frames over sleeve only"),
        Flag("no-bridged-fastdp", bool, False, "accepted and ignored"),
        Flag("expect-npc", bool, False, "leave filtering to the policy controller"),
        Flag("no-masq-local", bool, False, "keep sources of traffic to local containers"),
        Flag("awsvpc", bool, False, "not supported"),
        Flag("name", str, "", "peer name, six hex groups"),
        Flag("nickname", str, "", "name for people, default the host's"),
        Flag("password", str, "", "network password (better: WEAVE_PASSWORD or --password-file)"),
        Flag("password-file", str, "", "file with one password a line; the first is primary, all are accepted"),
        Flag("log-level", str, "info", "debug, info, warning or error"),
        Flag("pkt-debug", bool, False, "log every packet"),
        Flag("profile", str, "", "directory for profiles", "profiling"),
        Flag("conn-limit", int, DEFAULT_CONNECTION_LIMIT, "connections at most, 0 for any number"),
        Flag("mesh-degree", int, 0, "neighbours to keep; relays carry the rest; 0 for everybody"),
        Flag("no-discovery", bool, False, "connect to given peers only"),
        Flag("bufsz", int, 8, "accepted and ignored: no capture buffer"),
        Flag("mtu", str, "0", "MTU of the bridge and of containers; auto: as large as the underlay takes"),
        Flag("http-addr", str, "", "control API: address:port, or a unix socket's path"),
        Flag("status-addr", str, "", "read-only API: address:port"),
        Flag("metrics-addr", str, "", "metrics only: address:port"),
        Flag("socket", str, "", "control API on this unix socket as well"),
        Flag("ipalloc-range", str, "", "range to allocate addresses from; none: no allocation"),
        Flag("ipalloc-default-subnet", str, "", "subnet to allocate from by default"),
        Flag("ipalloc-init", str, "", "how the ring begins: consensus[=N], seed=NAME,..., observer"),
        Flag("ipalloc-reclaim", str, "", "time out of reach after which a host loses its addresses; none: never"),
        Flag("docker-api", str, "", "Docker's API", "Docker integration"),
        Flag("no-dns", bool, False, "no name service"),
        Flag("trusted-subnets", str, "", "comma-separated networks to send frames to in clear"),
        Flag("db-prefix", str, "", "where state is kept: this, and data.sqlite"),
        Flag("proc-path", str, "/proc", "where the host's processes are seen"),
        Flag("host-root", str, "", "where the host's root is mounted"),
        Flag("ready-patience", str, "60s", "without any peer for so long, GET /ready says so; 0: it never does"),
    ]
    flags += [
        Flag("dns-domain", str, "weave.local.", "domain of names"),
        Flag("dns-listen-address", str, "0.0.0.0:53", "where names are served; not given: on the bridge"),
        Flag("dns-ttl", int, 1, "seconds for which an answer may be kept"),
        Flag("dns-fallback-timeout", str, "5s", "how long upstream servers may take"),
        Flag("resolv-conf", str, "", "file that names the upstream servers"),
        Flag("dns-upstream", str, "", "comma-separated upstream servers, IP[:port]; instead of --resolv-conf"),
        Flag("kube-dns-names", bool, False, "names of pods", "names of pods"),
    ]
    for name in ("token", "peer-discovery-url", "advertise-address"):
        flags.append(Flag(name, str, "", "hosted discovery, gone since 2022"))
    for name in ("plugin", "plugin-v2", "plugin-v2-multicast"):
        flags.append(Flag(name, bool, False, "Docker network plugin", "the Docker plugin"))
    for name in ("plugin-socket", "plugin-mesh-socket"):
        flags.append(Flag(name, str, "", "Docker network plugin", "the Docker plugin"))
    labels = ("hostname-from-label", "hostname-match", "hostname-replacement")
    for name in ("H", *labels, "tlscacert", "tlscert", "tlskey"):
        flags.append(Flag(name, str, "", "Docker API proxy", "the Docker proxy"))
    proxy = ("proxy", "rewrite-inspect", "no-default-ipalloc", "no-rewrite-hosts", "no-multicast-route", "without-dns")
    for name in (*proxy, "tls", "tlsverify"):
        flags.append(Flag(name, bool, False, "Docker API proxy", "the Docker proxy"))
    return {flag.name: flag for flag in flags}


FLAGS: Mapping[str, Flag] = _flags()
_SHORT = {"h": "help"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What the router was told, checked. Passwords are in no repr."""

    peers: tuple[str, ...]
    name: PeerName | None
    nickname: str
    passwords: tuple[bytes, ...] = field(repr=False)
    host: str
    port: int
    min_protocol_version: int
    bridge: str
    docker_bridge: str
    expect_npc: bool
    no_masq_local: bool
    log_level: str
    packet_debug: bool
    conn_limit: int
    mesh_degree: int | None
    discovery: bool
    mtu: int
    mtu_auto: bool
    fastdp: bool
    http_address: str
    status_address: str
    socket_path: str
    trusted_subnets: tuple[IPv4Network | IPv6Network, ...]
    host_root: str
    ready_patience: float
    db_prefix: str
    proc_path: str
    resume: bool
    metrics_address: str
    ipalloc_range: Subnet | None
    ipalloc_default_subnet: Subnet | None
    ipalloc_init: Init
    ipalloc_reclaim: float | None
    names: NameSettings | None
    dns_address: tuple[str, int] | None
    missing: tuple[str, ...]
    given: Mapping[str, str]


def parse(arguments: Sequence[str]) -> tuple[dict[str, str | int | bool], dict[str, str], list[str]]:
    """(all values, those given as text with secrets redacted, peers). Raises FlagError."""
    values: dict[str, str | int | bool] = {name: flag.default for name, flag in FLAGS.items()}
    given: dict[str, str] = {}
    peers: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            peers += rest
            break
        if not word.startswith("-") or word == "-":
            peers.append(word)
            continue
        name, equals, text = word.lstrip("-").partition("=")
        flag = FLAGS.get(_SHORT.get(name, name))
        if flag is None:
            raise FlagError(f"flag provided but not defined: {word.partition('=')[0]}")
        if flag.kind is bool:
            text = text if equals else "true"
        elif not equals:
            if not rest:
                raise FlagError(f"flag needs an argument: --{flag.name}")
            text = rest.pop(0)
        values[flag.name] = _value(flag, text)
        given[flag.name] = REDACTED if flag.name in _SECRET else text
    return values, given, peers


def _value(flag: Flag, text: str) -> str | int | bool:
    if flag.kind is bool:
        if text in ("1", "t", "T", "TRUE", "true", "True"):
            return True
        if text in ("0", "f", "F", "FALSE", "false", "False"):
            return False
        raise FlagError(f'invalid boolean value "{text}" for flag --{flag.name}: {_syntax("ParseBool", text)}')
    if flag.kind is int:
        if not _INTEGER.fullmatch(text):
            raise FlagError(f'invalid value "{text}" for flag --{flag.name}: {_syntax("ParseInt", text)}')
        if len(text) > _MAX_DIGITS or abs(int(text)) >= 1 << 63:
            problem = _syntax("ParseInt", text, "value out of range")
            raise FlagError(f'invalid value "{text}" for flag --{flag.name}: {problem}')
        return int(text)
    return text


def _syntax(function: str, text: str, problem: str = "invalid syntax") -> str:
    return f'strconv.{function}: parsing "{text}": {problem}'


def check(
    values: Mapping[str, str | int | bool],
    given: Mapping[str, str],
    peers: Sequence[str],
    environment: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings that the values make. Raises SettingsError."""
    level = str(values["log-level"])
    if level not in LEVELS:
        raise SettingsError(f'not a valid logrus Level: "{level}"')
    if values["awsvpc"]:
        if values["password"]:
            raise SettingsError("--awsvpc mode is not compatible with the --password option")
        raise SettingsError("--awsvpc is not supported: use the mesh's own data paths, or routes of the VPC itself")
    for name in ("token", "peer-discovery-url"):
        if values[name]:
            raise SettingsError(f"--{name} is not supported: the discovery service is gone; name peers instead")
    if values["resume"] and peers:
        raise SettingsError("You must not specify an initial peer list in conjunction with --resume")
    range_, subnet, init = _addresses(values)
    names, dns_address = _names(values, given)
    version = int(values["min-protocol-version"])
    if version not in (1, 2):
        raise SettingsError("--min-protocol-version must be in range [1,2]")
    return Settings(
        peers=tuple(peers),
        name=_name(str(values["name"])),
        nickname=_nickname(str(values["nickname"]) or socket.gethostname()),
        passwords=_passwords(values, environment),
        host=_host(str(values["host"])),
        port=_port(int(values["port"])),
        min_protocol_version=version,
        bridge=_bridge("weave-bridge", str(values["weave-bridge"])),
        docker_bridge=_bridge("docker-bridge", str(values["docker-bridge"])) if values["docker-bridge"] else "",
        expect_npc=bool(values["expect-npc"]),
        no_masq_local=bool(values["no-masq-local"]),
        log_level=level,
        packet_debug=bool(values["pkt-debug"]),
        conn_limit=_at_least(0, "conn-limit", int(values["conn-limit"])),
        mesh_degree=_at_least(0, "mesh-degree", int(values["mesh-degree"])) or None,
        discovery=not values["no-discovery"],
        mtu=_mtu(str(values["mtu"])),
        mtu_auto=values["mtu"] == "auto",
        fastdp=not values["no-fastdp"],
        http_address=str(values["http-addr"]),
        status_address=str(values["status-addr"]),
        socket_path=str(values["socket"]),
        trusted_subnets=_subnets(str(values["trusted-subnets"])),
        host_root=str(values["host-root"]),
        ready_patience=_patience(str(values["ready-patience"])),
        db_prefix=str(values["db-prefix"]),
        proc_path=str(values["proc-path"]),
        metrics_address=str(values["metrics-addr"]),
        ipalloc_range=range_,
        ipalloc_default_subnet=subnet,
        ipalloc_init=init,
        ipalloc_reclaim=_reclaim(str(values["ipalloc-reclaim"]), allocates=range_ is not None),
        names=names,
        dns_address=dns_address,
        resume=bool(values["resume"]),
        missing=tuple(sorted({FLAGS[name].missing for name in given if FLAGS[name].missing and values[name]})),
        given=dict(sorted(given.items())),
    )


def _name(text: str) -> PeerName | None:
    if not text:
        return None
    try:
        name = parse_peer_name(text)
    except InvalidPeerNameError as error:
        raise SettingsError(str(error)) from error
    if not name:
        raise SettingsError("peer name 00:00:00:00:00:00 means 'unknown': choose another")
    return name


def _nickname(text: str) -> str:
    try:
        text.encode()
    except UnicodeError:
        raise SettingsError(f"--nickname {text!a} is not UTF-8") from None
    return text


def _host(text: str) -> str:
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        raise SettingsError(f"--host {text} is no IP address: give one of this host") from None


def _bridge(flag: str, name: str) -> str:
    if not 0 < len(name) <= _INTERFACE_NAME or "/" in name or name.split() != [name]:
        raise SettingsError(f"--{flag} {name!r} is no interface name: it has 1 to {_INTERFACE_NAME} characters")
    return name


def _port(port: int) -> int:
    if not 0 < port < 65535:
        raise SettingsError(f"--port {port} is out of range: choose one from 1 to 65534 (the next one is used as well)")
    return port


def _at_least(least: int, name: str, value: int) -> int:
    if value < least:
        raise SettingsError(f"--{name} {value} is out of range: it is at least {least}")
    return value


def _mtu(text: str) -> int:
    if text == "auto":
        return 0
    try:
        mtu = int(text)
    except ValueError:
        raise SettingsError(f"--mtu {text} is no number: give bytes, or 'auto'") from None
    if mtu and not 576 <= mtu <= 65521:
        raise SettingsError(f"--mtu {mtu} is out of range: choose one from 576 to 65521, or 0 for the default")
    return mtu


def _passwords(values: Mapping[str, str | int | bool], environment: Mapping[str, str]) -> tuple[bytes, ...]:
    path = str(values["password-file"])
    if path:
        try:
            lines = Path(path).read_bytes().splitlines()
        except OSError as error:
            raise SettingsError(f"unable to read --password-file {path}: {error.strerror}") from error
        passwords = tuple(line for line in lines if line)
        if not passwords:
            raise SettingsError(f"--password-file {path} holds no password")
        return passwords
    password = str(values["password"]) or environment.get("WEAVE_PASSWORD", "")
    return (os.fsencode(password),) if password else ()


def _subnets(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    subnets = []
    for part in text.split(",") if text else []:
        try:
            if not part.partition("/")[2].isdecimal():
                raise ValueError
            subnets.append(ip_network(part, strict=False))
        except ValueError:
            raise SettingsError(f"Unable to parse trusted subnets: invalid CIDR address: {part}") from None
    return tuple(subnets)


def _addresses(values: Mapping[str, str | int | bool]) -> tuple[Subnet | None, Subnet | None, Init]:
    range_, subnet, init = (str(values[f"ipalloc-{name}"]) for name in ("range", "default-subnet", "init"))
    if not range_:
        if init:
            raise SettingsError("--ipalloc-init specified without --ipalloc-range.")
        if subnet:
            raise SettingsError("--ipalloc-default-subnet specified without --ipalloc-range.")
        return None, None, Init()
    if init:
        _check_init(init)
    try:
        universe, default = Subnet.parse(range_), Subnet.parse(subnet) if subnet else None
        how = Init.parse(init) if init else Init()
    except IpamError as error:
        raise SettingsError(str(error)) from None
    except InvalidPeerNameError as error:
        raise SettingsError(f"Unable to parse --ipalloc-init: bad seed parameter: {error}") from None
    if default is not None and not default.overlaps(universe):
        text = f"IP address allocation default subnet {subnet} does not overlap with allocation range {range_}"
        raise SettingsError(text)
    return universe, default, how


def _reclaim(text: str, *, allocates: bool) -> float | None:
    """Seconds; None where it is off."""
    if text and not allocates:
        raise SettingsError("--ipalloc-reclaim specified without --ipalloc-range.")
    return _duration("ipalloc-reclaim", text) if text else None


def _patience(text: str) -> float:
    """Seconds; 0 for no end of it."""
    return 0.0 if text in ("0", "0s") else _duration("ready-patience", text)


def _check_init(text: str) -> None:
    mode, equals, parameter = text.partition("=")
    problem = ""
    if mode == "consensus":
        if equals and not parameter.isdecimal():
            problem = f"bad consensus parameter: {parameter}"
    elif mode == "seed":
        if not parameter:
            problem = "seed mode requires peer name list"
    elif mode == "observer":
        if equals:
            problem = "observer mode takes no parameter"
    else:
        problem = f"unknown mode: {mode}"
    if problem:
        raise SettingsError(f"Unable to parse --ipalloc-init: {problem}")


def _names(
    values: Mapping[str, str | int | bool], given: Mapping[str, str]
) -> tuple[NameSettings | None, tuple[str, int] | None]:
    """What the name service is told, and where it listens if somebody said so."""
    if values["no-dns"]:
        return None, None
    domain = str(values["dns-domain"])
    timeout = _duration("dns-fallback-timeout", str(values["dns-fallback-timeout"]))
    ttl = _at_least(0, "dns-ttl", int(values["dns-ttl"]))
    upstream = tuple(filter(None, str(values["dns-upstream"]).split(",")))
    try:
        address = listen_address(str(values["dns-listen-address"])) if "dns-listen-address" in given else None
        return NameSettings(domain, ttl, timeout, str(values["resolv-conf"]), upstream), address
    except ValueError as error:
        raise SettingsError(f"Unable to start dns server: {error}") from None


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:[0-9]*\.?[0-9]+(?:ns|us|µs|μs|ms|s|m|h))+")


def _duration(flag: str, text: str) -> float:
    """Go's `5s`, `1m30s`, `250ms` as seconds; more than nothing."""
    parts = re.findall(r"([0-9]*\.?[0-9]+)(ns|us|µs|μs|ms|s|m|h)", text) if _DURATION.fullmatch(text) else []
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise SettingsError(f'invalid value "{text}" for flag --{flag}: give a duration, as 5s or 1m30s')
    return seconds


def usage() -> str:
    """The flags, a line each."""
    lines = ["Usage: weaver [flags] [peer ...]", ""]
    for flag in sorted(FLAGS.values(), key=lambda flag: flag.name.lower()):
        note = f" (not available: {flag.missing})" if flag.missing else ""
        lines.append(f"  --{flag.name:<24} {flag.help}{note}")
    return "\n".join(lines)
