"""The status texts, written from the report, byte for byte as scripts parse them. Source: CLI spec §6.1, §6.2.

A nickname may hold anything; what would forge a line or drive a terminal is escaped.
"""

from collections import Counter
from typing import Any

from weave_py.log import printable
from weave_py.report import Document

_LABEL = 15
_CONTAINER = 12
_SHOWN = 3
_STATES = ("established", "pending", "retrying", "failed", "connecting")


def _line(label: str, value: object) -> str:
    return f"{label:>{_LABEL}}: {printable(str(value))}\n"


def section(*rows: tuple[str, object]) -> str:
    """One service's part of `/status`: its rows of label and value, the first of them `Service`."""
    return "\n" + "".join(_line(label, value) for label, value in rows)


def overview(report: Document) -> str:
    """`/status`: the router, then each service that runs."""
    parts = [_router(report)]
    if report.get("IPAM"):
        parts.append(_ipam(report["IPAM"]))
    if report.get("DNS"):
        parts.append(_dns(report["DNS"]))
    return "".join(parts)


def _router(report: Document) -> str:
    router = report["Router"]
    oldest, newest = router["ProtocolMinVersion"], router["ProtocolMaxVersion"]
    versions = f"weave {newest}" if oldest == newest else f"weave {oldest}..{newest}"
    return _line("Version", f"{report['Version']} (version check update disabled)") + section(
        ("Service", "router"),
        ("Protocol", versions),
        ("Name", f"{router['Name']}({router['NickName']})"),
        ("Encryption", _enabled(router["Encryption"])),
        ("PeerDiscovery", _enabled(router["PeerDiscovery"])),
        ("Targets", len(router["Targets"] or ())),
        ("Connections", _connection_counts(router)),
        ("Peers", _peer_counts(router)),
        ("TrustedSubnets", ", ".join(router["TrustedSubnets"] or ()) or "none"),
    )


def _ipam(ipam: Document) -> str:
    rows: list[tuple[str, object]] = [
        ("Service", "ipam"),
        ("Status", ipam_status(ipam)),
        ("Range", ipam["Range"]),
        ("DefaultSubnet", ipam["DefaultSubnet"]),
    ]
    # What is wrong and what helps; nothing of it where nothing is.
    rows += [("Dispute", text) for text in ipam.get("Disputes") or ()]
    waiting = ipam.get("Waiting") or ()
    rows += [("Waiting", f"{one['Ident']}: {one['Reason']}") for one in waiting[:_SHOWN]]
    if len(waiting) > _SHOWN:
        rows.append(("Waiting", f"and {len(waiting) - _SHOWN} more"))
    return section(*rows)


def ipam_status(ipam: Document) -> str:
    """The state of address allocation in one phrase. Source: IPAM spec §17."""
    if ipam["Entries"] is not None:
        if not any(entry["IsKnownPeer"] and entry["Size"] for entry in ipam["Entries"]):
            return "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead"
        return "waiting for IP(s) to become available" if ipam["PendingAllocates"] else "ready"
    paxos = ipam["Paxos"]
    if paxos is None:
        return "idle"
    if not paxos["Elector"]:
        return "priming"
    if paxos.get("Patience"):
        return f"waiting {paxos['Patience']} s more for the peers that were given before beginning a ring alone"
    return f"awaiting consensus (quorum: {paxos['Quorum']}, known: {paxos['KnownNodes']})"


def _dns(dns: Document) -> str:
    return section(
        ("Service", "dns"),
        ("Domain", dns["Domain"]),
        ("Upstream", ", ".join(dns["Upstream"] or ()) or "none"),
        ("TTL", dns["TTL"]),
        ("Entries", sum(not entry["Tombstone"] for entry in dns["Entries"] or ())),
    )


def _enabled(value: bool) -> str:
    return "enabled" if value else "disabled"


def _connection_counts(router: dict[str, Any]) -> str:
    rows = router["Connections"] or ()
    counts = Counter(row["State"] for row in rows)
    parts = [f"{counts[state]} {state}" for state in _STATES if counts[state]]
    return f"{len(rows)} ({', '.join(parts)})" if parts else str(len(rows))


def _peer_counts(router: dict[str, Any]) -> str:
    links = [link for peer in router["Peers"] for link in peer["Connections"] or ()]
    established = sum(link["Established"] for link in links)
    pending = len(links) - established
    parts = [f"{count} {what}" for count, what in ((established, "established"), (pending, "pending")) if count]
    return f"{len(router['Peers'])} (with {', '.join(parts)} connections)" if parts else str(len(router["Peers"]))


def connections(report: Document) -> str:
    """`/status/connections`."""
    lines = []
    for row in report["Router"]["Connections"] or ():
        attrs = row["Attrs"] or {}
        shown = "".join(f"{key}={_attribute(attrs[key])}" for key in sorted(attrs) if key not in ("name", "reason"))
        # Behind all that scripts read.
        reason = f" ({printable(str(attrs['reason']))})" if "reason" in attrs else ""
        arrow = "->" if row["Outbound"] else "<-"
        lines.append(f"{arrow} {row['Address']:<21} {row['State']:<11} {printable(row['Info'])} {shown}{reason}\n")
    return "".join(lines)


def _attribute(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def targets(report: Document) -> str:
    """`/status/targets`."""
    return "".join(f"{printable(target)}\n" for target in report["Router"]["Targets"] or ())


def peers(report: Document) -> str:
    """`/status/peers`."""
    lines = []
    for peer in report["Router"]["Peers"]:
        lines.append(f"{_label(peer)}\n")
        for link in peer["Connections"] or ():
            arrow = "->" if link["Outbound"] else "<-"
            state = "established" if link["Established"] else "pending"
            lines.append(f"   {arrow} {link['Address']:<21} {_label(link):<37} {state}\n")
    return "".join(lines)


def _label(peer: dict[str, Any]) -> str:
    return printable(f"{peer['Name']}({peer['NickName']})")


def ipam(report: Document) -> str:
    """`/status/ipam`: who owns how much of the range, ourselves first. Source: IPAM spec §17."""
    ipam = report.get("IPAM")
    if not ipam:
        return ""
    sizes: dict[str, int] = {}
    labels: dict[str, tuple[str, bool]] = {}
    for entry in ipam["Entries"] or ():
        sizes[entry["Peer"]] = sizes.get(entry["Peer"], 0) + entry["Size"]
        labels[entry["Peer"]] = f"{entry['Peer']}({entry['Nickname']})", entry["IsKnownPeer"]
    ours = report["Router"]["Name"]
    lines = []
    for peer in sorted(sizes, key=lambda name: name != ours):
        label, known = labels[peer]
        info = f"({ipam['ActiveIPs']} active)" if peer == ours else "" if known else "- unreachable!"
        share = 100 * sizes[peer] / ipam["RangeNumIPs"]
        lines.append(f"{printable(label):<37} {sizes[peer]:8} IPs ({share:04.1f}% of total) {info}\n")
    return "".join(lines)


def dns(report: Document) -> str:
    """`/status/dns`: names below the domain that are alive. Source: CLI spec §6.2."""
    dns = report.get("DNS")
    if not dns:
        return ""
    alive = [entry for entry in dns["Entries"] or () if not entry["Tombstone"]]
    keys = ("Hostname", "Origin", "ContainerID", "Address")
    lines = []
    for entry in sorted(alive, key=lambda entry: [entry[key].lower() for key in keys]):
        name = printable(entry["Hostname"].removesuffix(f".{dns['Domain']}"))
        container = printable(entry["ContainerID"])[:_CONTAINER]
        lines.append(f"{name:<12} {entry['Address']:<15} {container:>{_CONTAINER}} {entry['Origin']}\n")
    return "".join(lines)


def fastdp(report: Document) -> str:
    """`/status/fastdp`: links, peers by short id, addresses with their age in seconds, drops."""
    fastdp = report["Router"].get("Fastdp")
    if not fastdp:
        return ""
    names = {peer["Name"]: printable(f"{peer['Name']}({peer['NickName']})") for peer in report["Router"]["Peers"]}
    ports = ", ".join(str(port) for port in fastdp["Ports"])
    problem = f", {fastdp['Mode']}: {printable(fastdp['Problem'])}" if fastdp["Problem"] else ""
    lines = [f"UDP port {ports or 'none yet'}, MTU {fastdp['MTU']}{problem}\n", "links:\n"]
    for link in fastdp["Links"] or ():
        state = printable(link["Reason"]) or ("works, encrypted" if link["ESP"] else "works")
        lines.append(f"   {names.get(link['Peer'], link['Peer']):<37} {link['Address']:<15} {state}\n")
    lines.append("peers:\n")
    for peer in fastdp["Peers"] or ():
        via = f"via {peer['Hop']}" if peer["Hop"] else ""
        via += f" by {printable(peer['Device'])}" if peer["Device"] else ""
        lines.append(f"   {peer['ShortID']:>4} {names.get(peer['Name'], peer['Name']):<37} {peer['Path']:<6} {via}\n")
    if fastdp["Transmit"] and fastdp["Transmit"]["Problem"]:
        lines.append(f"   no transmit device: {printable(fastdp['Transmit']['Problem'])}\n")
    lines.append("addresses:\n")
    for row in fastdp["MACs"] or ():
        lines.append(f"   {row['Mac']} {names.get(row['Name'], row['Name']):<37} {row['Age']:>6.1f} s\n")
    drops = ", ".join(f"{name} {count}" for name, count in fastdp["Drops"].items() if count)
    lines.append(f"dropped: {drops or 'nothing'}\n")
    return "".join(line.rstrip() + "\n" for line in lines)
