"""What all hosts of a lab say of themselves, as one table on a terminal that follows them."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lab.router import Router

_INTERVAL = 1.0


def watch(routers: Sequence[Router]) -> None:
    """Show the table every second until interrupted; where there is no terminal, once."""
    console = Console()
    if not console.is_terminal:
        console.print(_table(routers))
        return
    with Live(_table(routers), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_INTERVAL)
            live.update(_table(routers), refresh=True)


def _table(routers: Sequence[Router]) -> Table:
    table = Table(title="hosts")
    for heading in ("host", "router", "connections", "peers", "addresses", "in use", "names"):
        table.add_column(heading, justify="left" if heading in ("host", "router") else "right")
    for router in routers:
        table.add_row(router.host.namespace, *_cells(router))
    return table


def _cells(router: Router) -> list[str]:
    """One host's row; a router that does not answer has only that to say."""
    try:
        report = router.report()
    except OSError:
        return ["no answer"]
    own, ipam, names = report["Router"], report["IPAM"], report["DNS"]
    share = sum(entry["Size"] for entry in ipam["Entries"] or () if entry["Peer"] == own["Name"])
    live = sum(not entry["Tombstone"] for entry in names["Entries"] or ())
    established = sum(row["State"] == "established" for row in own["Connections"] or ())
    counts = [established, len(own["Peers"]), share, ipam["ActiveIPs"], live]
    return [f"{own['NickName']}, {report['Version']}", *map(str, counts)]
