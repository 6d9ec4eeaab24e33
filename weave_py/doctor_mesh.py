"""What a router's report shows to be wrong: connections, clocks, names, who holds what.

A report is one moment of one router. What may be a change on its way is left out where the report says since when,
and called a warning where it does not.
Source: CLI spec §6.3, §14; IPAM spec §13, §17, §21; DNS spec §14; mesh spec §13.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from weave_py.doctor_finding import Finding, Severity, error, warning
from weave_py.report import Document

LEAST_MTU = 1280
LEAST_SPACE = 4 << 20
# Seconds: from where on two clocks make logs useless, and from where on Weave Net hangs up.
_SKEW, _FATAL_SKEW = 5.0, 900.0

# What a connection says that does not come up, and what helps.
_REMEDIES = (
    ("connection refused", "is the router running there, and is it the right port?"),
    ("i/o timeout", "TCP 6783 is blocked on the way, or the host is down: open it on both hosts"),
    ("no route to host", "the host is down, or its network cannot be reached from here"),
    ("network is unreachable", "this host has no route there"),
    ("no such host", "the name is not known to this host's resolver: correct it, or give an address"),
    ("Unable to decrypt TCP msg", "the passwords differ: give both the same"),
    ("no password specificed", "give this router the password that the peer has"),
    ("password specificed, but peer requested", "give the peer the password, or take it from this router"),
    ("peer names collision", "two hosts have the same name: give one of them a --name, or another machine id"),
    ("no working forwarders", "UDP 6783 is blocked between the hosts: open it on both"),
    ("Connection limit reached", "raise --conn-limit on the peer, or use --mesh-degree"),
    ("Incompatible IP allocation ranges", "launch all hosts with the same --ipalloc-range"),
    ("seeded by different peers", "two clusters meet: 'weave reset' the hosts of one of them, and launch them anew"),
    ("Found unknown remote name", "a host changed its name: 'weave forget' the address, and 'weave connect' it again"),
    ("clock skew", "set the clocks right: run chrony or systemd-timesyncd on all hosts"),
)
_UNHELPED = "the log of the router at the other end says more"
# Between these routers a connection that is not meant to be is no fault.
_HARMLESS = ("cannot connect to ourself",)


def examine(report: Document) -> Iterator[Finding]:
    """All findings, in no order."""
    yield from _connections(report["Router"])
    yield from _links(report["Router"])
    yield from _names(report["Router"])
    yield from _clocks(report)
    yield from _agreement(report.get("Agreement"))
    yield from _ring(report.get("IPAM"))
    yield from _names_service(report.get("DNS"))
    yield from _state(report.get("State"))


def _connections(router: Document) -> Iterator[Finding]:
    for row in router["Connections"] or ():
        info = str(row["Info"])
        if row["State"] in ("failed", "retrying") and not any(text in info for text in _HARMLESS):
            remedy = next((remedy for text, remedy in _REMEDIES if text in info), _UNHELPED)
            reason = info.partition(", retry: ")[0]
            check = "names" if "names collision" in info else "connections"
            yield Finding(check, Severity.ERROR, f"no connection to {row['Address']}: {reason}", remedy)
        elif row["State"] == "pending":
            yield warning(
                "connections",
                f"the connection to {row['Address']} ({info.split()[-1]}) carries no frames yet",
                "if it stays so for a minute, UDP 6783 is blocked between the hosts: open it on both",
            )


def _links(router: Document) -> Iterator[Finding]:
    """Connections that one end lists and the other does not: what the peers tell of themselves does not fit."""
    # A peer without a UID is only known by others' lists.
    peers = [peer for peer in router["Peers"] or () if peer["UID"]]
    lists = {peer["Name"]: {link["Name"] for link in peer["Connections"] or ()} for peer in peers}
    labels = {peer["Name"]: f"{peer['Name']}({peer['NickName']})" for peer in peers}
    for name, links in sorted(lists.items()):
        for other in sorted(links & lists.keys()):
            if name not in lists[other]:
                yield warning(
                    "agreement",
                    f"{labels[name]} says it is connected to {labels[other]}, which does not say so",
                    "if it stays so for a minute, look at 'weave status connections' on both",
                )


def _names(router: Document) -> Iterator[Finding]:
    peers = router["Peers"] or ()
    for nickname, count in sorted(Counter(peer["NickName"] for peer in peers).items()):
        if count > 1:
            names = ", ".join(sorted(peer["Name"] for peer in peers if peer["NickName"] == nickname))
            yield warning(
                "names",
                f"{count} peers have the nickname {nickname}: {names}",
                "give each host a --nickname of its own; until then say names, not nicknames, to 'weave rmpeer'",
            )


def _clocks(report: Document) -> Iterator[Finding]:
    agreement, dns = report.get("Agreement") or {"Peers": ()}, report.get("DNS") or {}
    skews = {peer["Name"]: peer["ClockSkew"] for peer in agreement["Peers"] if peer["ClockSkew"] is not None}
    # What Weave Net's routers show of their clocks: only that they are far off.
    skews |= dns.get("ClockSkews") or {}
    labels = {peer["Name"]: f"{peer['Name']}({peer['NickName']})" for peer in agreement["Peers"]}
    off = {name: skew for name, skew in skews.items() if abs(skew) > _SKEW}
    # Where most are off the same way, it is this host that is wrong.
    median = sorted(skews.values())[len(skews) // 2] if skews else 0.0
    if (
        len(skews) > 1
        and abs(median) > _SKEW
        and sum(abs(skew - median) <= _SKEW for skew in off.values()) > len(skews) / 2
    ):
        yield _skewed("the clock of this host", -median)
        off = {name: skew for name, skew in off.items() if abs(skew - median) > _SKEW}
    for name, skew in sorted(off.items()):
        yield _skewed(f"the clock of {labels.get(name, name)}", skew)


def _skewed(whose: str, seconds: float) -> Finding:
    how = f"{abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"
    fatal = abs(seconds) > _FATAL_SKEW
    effect = "; its names are not taken, and Weave Net 2.8 routers drop its connections" if fatal else ""
    severity = Severity.ERROR if fatal else Severity.WARNING
    return Finding("clock", severity, f"{whose} is {how}{effect}", "run chrony or systemd-timesyncd there")


def _agreement(agreement: Document | None) -> Iterator[Finding]:
    remedies = {
        "topology": "look at 'weave status connections' on both: what one learns does not reach the other",
        "ring": "look at 'weave status ipam' and the log on both; a conflict is named there with its cure",
        "names": "look at 'weave status dns' and at the clocks of both",
    }
    for peer in (agreement or {"Peers": ()})["Peers"]:
        for difference in peer["Differs"]:
            if difference["Lasting"]:
                subject, theirs, ours = difference["Subject"], difference["Theirs"], difference["Ours"]
                yield error(
                    "agreement",
                    f"{peer['Name']}({peer['NickName']}) holds another {subject} since {difference['Since']} "
                    f"({theirs['Count']} entries, ours {ours['Count']})",
                    remedies[subject],
                )


def _ring(ipam: Document | None) -> Iterator[Finding]:
    if ipam is None:
        return
    entries = ipam["Entries"] or ()
    away: dict[str, list[Any]] = {}
    for entry in entries:
        if not entry["IsKnownPeer"]:
            away.setdefault(f"{entry['Peer']}({entry['Nickname']})", []).append(entry)
    for label, theirs in sorted(away.items()):
        part = 100 * sum(entry["Size"] for entry in theirs) / ipam["RangeNumIPs"]
        yield warning(
            "ring",
            f"{part:.1f}% of the range belongs to {label}, which cannot be reached",
            f"start it again; if it is gone for good, 'weave rmpeer {theirs[0]['Peer']}' on one host only",
        )
    for line in ipam.get("Disputes") or ():
        what, _, remedy = line.partition("; ")
        yield error("ring", what, remedy)
    waiting = Counter(operation["Reason"] for operation in ipam.get("Waiting") or ())
    for reason, count in sorted(waiting.items()):
        remedy = "the reason says what helps; 'weave status ipam' shows who owns what"
        yield error("ring", f"{count} requests for addresses wait: {reason}", remedy)
    orphans = ipam.get("Orphans") or ()
    if orphans:
        names = ", ".join(orphans[:4]) + (f" and {len(orphans) - 4} more" if len(orphans) > 4 else "")
        yield warning(
            "state",
            f"{len(orphans)} hold addresses and are no containers that are seen here: {names}",
            "if they are gone, free what they hold: curl -X DELETE 127.0.0.1:6784/ip/ID",
        )


def _names_service(dns: Document | None) -> Iterator[Finding]:
    if dns is not None and not dns["Upstream"]:
        yield warning(
            "names",
            "there is no upstream name server: containers resolve only names of the overlay",
            "launch with --resolv-conf FILE, which names another server than the router itself, or with --dns-upstream",
        )


def _state(state: Document | None) -> Iterator[Finding]:
    if state is None:
        return
    if state["Lost"]:
        remedy = "connect this host to its peers: addresses are given out when the ring is known again"
        yield error("state", str(state["Lost"]), remedy)
    if state["WeaveNetWrote"]:
        yield error(
            "state",
            f"Weave Net wrote {state['WeaveNetWrote']} after this router had begun {state['Path']}",
            "if Weave Net ran on this host since, 'weave stop', move our file away and launch: its state is then taken "
            "over; else move its file away",
        )
