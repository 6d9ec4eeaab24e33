"""`weave npc`: what network policy does on this node, and why. Asks weave-npc on its socket. Source: NPC spec §7."""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from weave_py.client import CliError, UsageError
from weave_py.words import refuse_options, take_flag

SOCKET = "/run/weave/npc.sock"
_TIMEOUT = 30.0
_DENIED, _UNKNOWN = 1, 2
Document = Mapping[str, Any]


def npc(arguments: list[str]) -> int:
    """One sub-command; returns the exit code."""
    words = list(arguments)
    as_json = take_flag(words, "--json")
    command = words.pop(0) if words else "status"
    if command == "drops":
        follow = take_flag(words, "-f") | take_flag(words, "--follow")
        refuse_options(words)
        return _drops(words, follow, as_json)
    why_not = command == "explain" and take_flag(words, "--why-not")
    refuse_options(words)
    if command == "explain":
        return _explain(words, why_not, as_json)
    if command == "list" and words in (["pods"], ["policies"]):
        return _list(words[0], as_json)
    if words or command not in ("status", "check", "clear"):
        raise UsageError("")
    return {"status": _status, "check": _check, "clear": _clear}[command](as_json)


# --- the commands ---


def _status(as_json: bool) -> int:
    found = _ask({"ask": "status"})
    if as_json:
        _print(found)
    else:
        objects, lines = found["objects"], [f"{found['state']} on {found['node']}, hook {found['hook']}"]
        lines += [f"  {reason}: {text}" for reason, text in {**found["degraded"], **found["warnings"]}.items()]
        if found["awaited"]:
            lines.append(f"  not all known yet: {', '.join(found['awaited'])}")
        lines.append(f"{objects['pods']} pods, {objects['policies']} policies, {objects['namespaces']} namespaces")
        lines.append(f"{objects['isolatedAddresses']} addresses isolated here by {objects['chains']} chains, "
                     f"{objects['sets']} sets")  # fmt: skip
        lines.append(f"{found['commits']} commits, the last took {found['lastCommitSeconds'] * 1000:.1f} ms; "
                     f"{found['repairs']} foreign changes undone, {found['flowsCut']} connections ended")  # fmt: skip
        if found["latencySeconds"]:
            middle, worst = (found["latencySeconds"][key] * 1000 for key in ("median", "p99"))
            lines.append(f"an event's rules are in force after {middle:.1f} ms, p99 {worst:.1f} ms")
        lines.append(f"{found['dropsPerMinute']} drops a minute")
        lines += [f"refused by the kernel: {text}" for text in found["refused"].values()]
        lines += [f"policy {name}: {text}" for name, text in found["policyErrors"].items()]
        print("\n".join(lines))
    return 0 if found["ready"] else 1


def _list(kind: str, as_json: bool) -> int:
    found = _ask({"ask": kind})
    if as_json:
        _print(found)
        return 0
    for one in found:
        if kind == "pods":
            isolated = [f"{way}: {', '.join(one[way])}" for way in ("ingress", "egress") if one[way]]
            where = "host network" if one["hostNetwork"] else " ".join(one["addresses"])
            print(f"{one['pod']} ({where}): {'; '.join(isolated) or 'not isolated'}")
        else:
            wrong = f" ERROR: {one['error']}" if one["error"] else ""
            here = ", ".join(one["pods"]) or "nobody here"
            print(f"{one['policy']} ({', '.join(one['directions'])}): {here}; {one['dropped']} dropped{wrong}")
    return 0


def _drops(words: list[str], follow: bool, as_json: bool) -> int:
    if words:
        raise UsageError("")
    rows = _follow({"follow": "drops"}) if follow else iter(_ask({"ask": "drops"}))
    if as_json and not follow:
        _print(list(rows))
        return 0
    for one in rows:
        print(json.dumps(one) if as_json else f"{one['time']} {one['text']}", flush=True)
    return 0


def _check(as_json: bool) -> int:
    found = _ask({"ask": "check"})
    if as_json:
        _print(found)
    else:
        print("\n".join(found) if found else "the kernel holds what was meant")
    return 1 if found else 0


def _clear(as_json: bool) -> int:
    """Also where weave-npc does not run: then it is the kernel's table that is asked to go."""
    try:
        removed = _ask({"ask": "clear"})
    except CliError:
        removed = _clear_by_hand()
    _print(removed) if as_json else print("the rules are removed" if removed else "there were no rules")
    return 0


def _clear_by_hand() -> bool:
    from nft.wire import NftError
    from npc.kernel import Table

    try:
        table = Table()
        try:
            return table.remove()
        finally:
            table.close()
    except (NftError, OSError) as error:
        raise CliError(f"unable to remove the rules: {error}") from error


def _explain(words: list[str], why_not: bool, as_json: bool) -> int:
    if len(words) != 3:
        raise UsageError("")
    found = _ask({"ask": "explain", "source": words[0], "destination": words[1], "port": words[2], "whyNot": why_not})
    if as_json:
        _print(found)
    else:
        print("\n".join(line for document in found for line in document["text"]))
    return 0 if all(document["verdict"] == "allow" for document in found) else _DENIED


# --- the socket ---


def _ask(question: Document) -> Any:
    return next(_follow(question))


def _follow(question: Document) -> Iterator[Any]:
    """Answers until the other side leaves or we are interrupted. Raises CliError."""
    path = os.environ.get("WEAVE_NPC_SOCKET") or SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(path)
            sock.sendall(json.dumps(question).encode() + b"\n")
            if "follow" not in question:
                sock.settimeout(_TIMEOUT)
            with sock.makefile("rb") as lines:
                for line in lines:
                    yield _answer(json.loads(line))
                raise CliError("weave-npc ended")
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise CliError(f"weave-npc does not run here: nobody answers at {path}") from error
        except (OSError, ValueError) as error:
            raise CliError(f"weave-npc does not answer at {path}: {error}") from error


def _answer(document: Document) -> Any:
    if "error" in document:
        raise CliError(str(document["error"]), _UNKNOWN)
    return document["answer"]


def _print(document: object) -> None:
    json.dump(document, sys.stdout, indent=2)
    print()
