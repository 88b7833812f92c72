"""The tree of `asignals list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from asignals.overview.discovery import Discovery, Found, describe, notes_of, signature_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asignals.overview.program import NotLoaded


def tree(found: Iterable[Found], not_loaded: Sequence[NotLoaded] = ()) -> Tree:
    """Draw modules, their signals, and each signal's receivers in the order in which they are called."""
    root = Tree(Text("signals", style="bold"), guide_style="dim")
    modules: dict[str, Tree] = {}
    for each in found:
        branch = modules.get(each.module)
        if branch is None:
            branch = modules[each.module] = root.add(Text(each.module, style="bold cyan"))
        _add_signal(branch, each, not_loaded)
    return root


def summary(described: list[dict[str, Any]]) -> Text:
    """Count what was found, in a line."""
    receivers = sum(len(signal["receivers"]) for signal in described)
    orphans = sum(signal["orphan"] for signal in described)
    text = Text(f"{_count(len(described), 'signal')}, {_count(receivers, 'receiver')}")
    if orphans:
        text.append(f", {_count(orphans, 'orphan')}", style="yellow")
    return text


def write(console: Console, found: Discovery) -> None:
    """Print the tree and the summary; lines are cut nowhere when the output is not a terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=10_000, color_system=None)
    console.print(tree(found.signals, found.not_loaded) if found.signals else Text("no signals found"))
    if found.signals:
        console.print(summary([describe(each) for each in found.signals]))


def _add_signal(branch: Tree, found: Found, not_loaded: Sequence[NotLoaded]) -> None:
    described = describe(found, not_loaded)
    # Text and not markup: names and docstrings may hold what rich takes for a tag.
    line = Text(found.path.partition(":")[2], style="bold").append(signature_of(found.signal), style="green not bold")
    if described["orphan"]:
        line.append("  nobody hears this", style="yellow not bold")
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
    return line


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
