"""`weave doctor`: what is wrong here, and what to do about it. Source: CLI spec §14."""

import json

from weave_py import doctor
from weave_py.cli_addresses import BRIDGE
from weave_py.client import CliError, UsageError, call, control_address
from weave_py.launch import state_prefix
from weave_py.words import say, take_flag, take_value

_PORT = 6783


def run(arguments: list[str]) -> int:
    """`[--db-prefix PREFIX] [--port N] [--json]`; 1 if something was found. Raises CliError."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    prefix = take_value(words, "--db-prefix") or state_prefix()
    port = take_value(words, "--port") or str(_PORT)
    if words or not port.isdecimal():
        raise UsageError("")
    from weave_py.doctor_facts import gather

    try:
        report = json.loads(call("GET", "/report", accept="application/json", timeout=5.0))
    except CliError:
        report = None
    document = doctor.as_document(gather(prefix, BRIDGE, int(port), control_address()), report)
    say(doctor.text(document), document, as_json)
    return 1 if document["Findings"] else 0
