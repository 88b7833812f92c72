"""The tree of `asignals list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from asignals.overview.discovery import Discovery, Found, describe, notes_of, signature_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from asignals.overview.program import NotLoaded


def tree(found: Iterable[Found], not_loaded: Sequence[NotLoaded] = (), counts: Mapping[str, Any] | None = None) -> Tree:
    """Draw modules, their signals, and each signal's receivers in the order in which they are called."""
    root = Tree(Text("signals", style="bold"), guide_style="dim")
    modules: dict[str, Tree] = {}
    for each in found:
        branch = modules.get(each.module)
        if branch is None:
            branch = modules[each.module] = root.add(Text(each.module, style="bold cyan"))
        _add_signal(branch, each, describe(each, not_loaded, counts))
    return root


def summary(described: list[dict[str, Any]]) -> Text:
    """Count what was found, in a line."""
    receivers = sum(len(signal["receivers"]) for signal in described)
    orphans = sum(signal["orphan"] for signal in described)
    text = Text(f"{_count(len(described), 'signal')}, {_count(receivers, 'receiver')}")
    if orphans:
        text.append(f", {_count(orphans, 'orphan')}", style="yellow")
    calls = [receiver["calls"] for signal in described for receiver in signal["receivers"] if "calls" in receiver]
    if calls:
        unheard = sum(signal["unheard"] for signal in described)
        text.append(f"; {sum(map(bool, calls))} called, {calls.count(0)} never called, {_count(unheard, 'send')} ")
        text.append("that reached nobody")
    return text


def write(console: Console, found: Discovery, counts: Mapping[str, Any] | None = None) -> None:
    """Print the tree and the summary; lines are cut nowhere when the output is not a terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=10_000, color_system=None)
    console.print(tree(found.signals, found.not_loaded, counts) if found.signals else Text("no signals found"))
    if found.signals:
        console.print(summary([describe(each, (), counts) for each in found.signals]))


def _add_signal(branch: Tree, found: Found, described: dict[str, Any]) -> None:
    # Text and not markup: names and docstrings may hold what rich takes for a tag.
    line = Text(found.path.partition(":")[2], style="bold").append(signature_of(found.signal), style="green not bold")
    if described["orphan"]:
        line.append("  nobody hears this", style="yellow not bold")
    if "sends" in described:
        line.append(f"  {_sends(described)}", style="yellow not bold" if described["unheard"] else "cyan not bold")
    if described["doc"]:
        line.append(f"  {described['doc']}", style="dim not bold")
    node = branch.add(line)
    for number, receiver in enumerate(described["receivers"], 1):
        node.add(_receiver(number, receiver))
    for missing in described["not_loaded"]:
        node.add(Text(f"-  {missing['name']}  {missing['location']}  not loaded", style="yellow dim"))
    if not described["receivers"] and not described["orphan"]:
        node.add(Text("heard by streams only", style="dim"))


def _receiver(number: int, receiver: dict[str, Any]) -> Text:
    line = (
        Text(f"{number}. ").append(receiver["name"], style="magenta").append(f"  {receiver['location']}", style="dim")
    )
    for note in notes_of(receiver):
        line.append(f"  {note}", style="blue")
    if "calls" in receiver:
        called = f"called {receiver['calls']:,}×" if receiver["calls"] else "never called"
        line.append(f"  {called}", style="cyan" if receiver["calls"] else "yellow")
    return line


def _sends(described: dict[str, Any]) -> str:
    if not described["sends"]:
        return "never sent"
    unheard = f", {described['unheard']:,} reached nobody" if described["unheard"] else ""
    return f"sent {described['sends']:,}×{unheard}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
