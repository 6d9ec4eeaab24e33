"""What a pod of the DaemonSet is told by its environment, as the router's flags. No input or output here.

The variables are Weave Net's, with its defaults, so an existing manifest goes on to mean the same. EXTRA_ARGS come
first: what is fixed here wins. Source: Kubernetes and CNI spec §3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from weave_py.client import CliError
from weave_py.words import Wanted, wanted

_RANGE = "10.32.0.0/12"
_HTTP, _METRICS = "127.0.0.1:6784", "0.0.0.0:6782"
_SOCKET = "/run/weave/weaver.sock"
_PREFIX, _HOST_ROOT = "/weavedb/weave-net", "/host"
_LIMIT = "200"
_PORT = "6783"
_GIVEN = (
    ("WEAVE_STATUS_ADDR", "--status-addr"),
    ("WEAVE_MTU", "--mtu"),
    ("WEAVE_READY_PATIENCE", "--ready-patience"),
)
_NAMES = "--kube-dns-names"
_NAMES_PORT = "6785"


class KubeEnvironmentError(Exception):
    """A variable makes no sense: one line for a person."""


@dataclass(frozen=True, slots=True)
class KubeEnvironment:
    """What is told. `flags` are the router's, without those that depend on who else is there.

    `peers`: those given, None where the cluster knows; `init`: how the first ring comes about, if it is given;
    `expose`: addresses for this host, as for `weave expose`; `names`: pods get names; `api` and
    `token_file`: the API server's URL and our token, where that is not as in a pod.
    """

    node: str
    range: str
    bridge: str
    flags: tuple[str, ...]
    peers: tuple[str, ...] | None
    init: str
    expose: tuple[Wanted, ...]
    prefix: str
    host_root: str
    prepares_node: bool
    names: bool
    api: str
    token_file: str

    def arguments(self, peers: Sequence[str], count: int, more: Sequence[str] = ()) -> list[str]:
        """The router's command line among `count` nodes, us included, of which these are to be dialled.

        Two halves of a new cluster that each count fewer nodes than there are would begin two rings.
        """
        return [*self.flags, "--ipalloc-init", self.init or f"consensus={count}", *more, *peers]


def read(environment: Mapping[str, str]) -> KubeEnvironment:
    """The environment's meaning. Raises KubeEnvironmentError."""

    def value(name: str, default: str = "") -> str:
        """A blank variable is as good as none, as it was in Weave Net's script."""
        return environment.get(name) or default

    node = value("HOSTNAME")
    if not node:
        raise KubeEnvironmentError("HOSTNAME is not set: it is the node's name (spec.nodeName)")
    extra = value("EXTRA_ARGS").split()
    names = _names(extra) or value("WEAVE_KUBE_DNS_NAMES") not in ("", "0", "false")
    flags = [word for word in extra if not _is_flag(word, _NAMES)]
    prefix, host_root = value("DB_PREFIX", _PREFIX), environment.get("HOST_ROOT", _HOST_ROOT)
    flags += ["--port", _PORT, "--nickname", node, "--host-root", host_root, "--db-prefix", prefix]
    flags += ["--http-addr", value("WEAVE_HTTP_ADDR", _HTTP), "--socket", environment.get("WEAVE_SOCKET", _SOCKET)]
    flags += ["--metrics-addr", value("WEAVE_METRICS_ADDR", _METRICS)]
    flags += ["--ipalloc-range", value("IPALLOC_RANGE", _RANGE), "--conn-limit", value("CONN_LIMIT", _LIMIT)]
    for name, flag in _GIVEN:
        if value(name):
            flags += [flag, value(name)]
    if value("WEAVE_NO_FASTDP"):
        flags.append("--no-fastdp")
    for name, flag in (("EXPECT_NPC", "--expect-npc"), ("NO_MASQ_LOCAL", "--no-masq-local")):
        if value(name, "1") != "0":
            flags.append(flag)
    if value("WEAVE_DEBUG"):
        flags += ["--log-level", "debug"]
    flags += ["--dns-listen-address", f"{value('HOST_IP', '0.0.0.0')}:{_NAMES_PORT}"] if names else ["--no-dns"]
    return KubeEnvironment(
        node=node,
        range=value("IPALLOC_RANGE", _RANGE),
        bridge=_last(extra, "--weave-bridge") or "weave",
        flags=tuple(flags),
        peers=tuple(value("KUBE_PEERS").split()) if value("KUBE_PEERS") else None,
        init=value("IPALLOC_INIT"),
        expose=_addresses(value("WEAVE_EXPOSE_IP", "net:default")),
        prefix=prefix,
        host_root=host_root,
        prepares_node=value("INIT_CONTAINER") != "true",
        names=names,
        api=value("WEAVE_KUBE_API"),
        token_file=value("WEAVE_KUBE_TOKEN_FILE"),
    )


def _addresses(text: str) -> tuple[Wanted, ...]:
    try:
        return tuple(wanted(word) for word in text.split())
    except CliError as error:
        raise KubeEnvironmentError(f"WEAVE_EXPOSE_IP: {error}") from None


def _names(extra: Sequence[str]) -> bool:
    return any(_is_flag(word, _NAMES) and word.partition("=")[2] not in ("false", "0") for word in extra)


def _is_flag(word: str, flag: str) -> bool:
    return "--" + word.partition("=")[0].lstrip("-") == flag


def _last(words: Sequence[str], flag: str) -> str:
    """What the last such flag among words says, `--flag value` or `--flag=value`."""
    found = ""
    for position, word in enumerate(words):
        if _is_flag(word, flag):
            _, equals, text = word.partition("=")
            found = text if equals else "".join(words[position + 1 : position + 2])
    return found
