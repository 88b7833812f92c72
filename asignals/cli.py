"""The command `asignals` (extra: `asignals[cli]`; the demo needs `asignals[demo]`).

A command is a function here. It imports what it needs when it is called, in a `with needs(extra):` block, so that no
command needs, or waits for, what only another one uses. A command with its own commands is a `typer.Typer` in the
package that it belongs to, and a function here that calls `hand_over`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from asignals.overview.extras import advice


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """A block of imports: one that fails, as its package is not installed, ends the program and names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "asignals":
            raise  # not a missing extra but a mistake of ours
        sys.exit(f"asignals: {advice(error.name, extra)}")


with needs("cli"):
    import typer

app: typer.Typer = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

# For a command that hands all its arguments over.
PASS_ON: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


# The groups of commands that --help shows.
_LOOK = "Look at a program"
_RELAY = "Run and look after a relay"


def main() -> None:
    """Run the command line; ends the program with the command's exit status."""
    app(prog_name="asignals")


def hand_over(context: typer.Context, commands: Callable[..., object]) -> NoReturn:
    """Let a `Typer` with its own commands do the rest."""
    commands(args=context.args, prog_name=context.command_path)
    raise typer.Exit


def _show_version(wanted: bool) -> None:  # noqa: FBT001  typer calls it with the option's value
    if wanted:
        typer.echo(f"asignals {version('asignals')}")
        raise typer.Exit


@app.callback()
def asignals(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Signals for async Python: see them at work, and look into programs that use them."""


@app.command(rich_help_panel="See it work")
def demo(
    *,
    requests: Annotated[int | None, typer.Option(min=1, help="How many requests the customers make (300).")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Stay open afterwards, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON; times in seconds.")] = False,
    relay: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Let a kitchen in a separate process hear, by this engine (or: sqlite)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, max=16, help="Instead, serve a live page from so many processes, until Ctrl-C."),
    ] = None,
) -> None:
    """Run a small pizza shop, send it real HTTP requests, and show what its signals did.

    The exit status is 0 only if every request that started has finished, and 128 plus the number of a signal that
    interrupts the customers. With --workers there are no customers but you: an order that is placed on one page appears
    on the pages of all processes, by the engine of --relay.
    """
    if workers is not None:
        if requests or serve or as_json:
            raise typer.BadParameter("--workers goes with --relay only: it makes no requests, and runs until Ctrl-C")
        with needs("demo"):
            from asignals.demo.workers import run_workers  # noqa: PLC0415  loads what only this command needs
        raise typer.Exit(run_workers(workers, relay))
    with needs("demo"):
        from asignals.demo.run import run  # noqa: PLC0415  loads what only this command needs
    raise typer.Exit(run(requests=requests or 300, serve=serve, as_json=as_json, relay=relay))


Targets = Annotated[
    list[str],
    typer.Argument(
        metavar="ENTRY…", help="What a server is given, a module, or a signal: shop.main:app, shop.signals."
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Import every module of the program's packages.")]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="As --all, without what does not import.")]
Tracebacks = Annotated[bool, typer.Option("--traceback", help="Show the traceback of what does not import.")]


@app.command("list", rich_help_panel=_LOOK)
def list_(  # noqa: PLR0913  its options
    targets: Targets,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    counts: Annotated[
        str | None,
        typer.Option(metavar="FILE|URL", help="Of pytest --signals-report, or of an inspector: who was called?"),
    ] = None,
    everything: Everything = False,
    skip_broken: SkipBroken = False,
    tracebacks: Tracebacks = False,
) -> None:
    """Show the signals of a program, and who hears them in which order.

    The program is loaded by its entry point alone, as a server does it; what --all would add is marked. The exit status
    is 2 if a target does not import.
    """
    from asignals.overview.commands import list_signals  # noqa: PLC0415  loads what only this command needs

    with needs("cli"):
        raise typer.Exit(
            list_signals(
                targets,
                to_json=as_json,
                everything=everything,
                skip_broken=skip_broken,
                tracebacks=tracebacks,
                counts=counts,
            )
        )


@app.command(rich_help_panel=_LOOK)
def check(
    entries: Annotated[
        list[str],
        typer.Argument(metavar="ENTRY…", help="What a server is given: shop.main:app, shop.relay:relay, or a module."),
    ],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    factory: Annotated[bool, typer.Option("--factory", help="ENTRY is a function that makes the application.")] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave out findings of this kind, signal or file: shop.audit.*"),
    ] = None,
    tracebacks: Tracebacks = False,
) -> None:
    """Find receivers that are not loaded, sends that nobody hears, and other things that are missing.

    Each program is loaded by its entry point alone, as a server does it, in a separate process. A module that one of
    several entry points loads is not missing. The exit status is 1 if something was found, 2 if one does not load.
    """
    from asignals.overview.check_command import check_programs  # noqa: PLC0415  loads what only this command needs

    status = check_programs(entries, to_json=as_json, factory=factory, ignore=ignore or [], tracebacks=tracebacks)
    raise typer.Exit(status)


@app.command(rich_help_panel=_LOOK)
def graph(  # noqa: PLR0913  its options
    targets: Targets,
    *,
    form: Annotated[
        Literal["mermaid", "dot", "html", "json"] | None,
        typer.Option("--format", "-f", help="By default what the name of the output says, else mermaid."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file to write, instead of stdout.")] = None,
    everything: Everything = False,
    skip_broken: SkipBroken = False,
    tracebacks: Tracebacks = False,
) -> None:
    """Draw who sends what to whom: Mermaid, Graphviz's DOT, JSON, or a page with the picture in it.

    The program is loaded by its entry point alone, as a server does it; what --all would add is marked. The exit status
    is 2 if a target does not import, or the output cannot be written.
    """
    from asignals.overview.commands import draw_graph  # noqa: PLC0415  loads what only this command needs

    raise typer.Exit(
        draw_graph(
            targets, form=form, output=output, everything=everything, skip_broken=skip_broken, tracebacks=tracebacks
        )
    )


@app.command(context_settings=PASS_ON, rich_help_panel=_RELAY)
def worker(context: typer.Context) -> None:
    """Run the receiving side of a relay as a process."""
    from asignals.relay.commands import worker_app  # noqa: PLC0415  loads what only this command needs

    hand_over(context, worker_app)


@app.command(context_settings=PASS_ON, rich_help_panel=_RELAY)
def relay(context: typer.Context) -> None:
    """Look after a relay: its tables, its backlog, its dead letters."""
    from asignals.relay.commands import app as relay_app  # noqa: PLC0415  loads what only this command needs

    hand_over(context, relay_app)
