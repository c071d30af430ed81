"""The command: parse, build a configuration, call, print. Everything heavy is imported where it is used."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from antibackdoor import cli_exits, cli_formats
from antibackdoor.cli_bench import bench
from antibackdoor.cli_compare import compare
from antibackdoor.cli_experiment import demo, poison
from antibackdoor.cli_export import export
from antibackdoor.cli_formats import Formats
from antibackdoor.cli_network import evaluate, predict
from antibackdoor.cli_options import RunFolder
from antibackdoor.cli_review import review
from antibackdoor.cli_train import scan, train
from antibackdoor.cli_verify import verify

__all__ = ["app", "main"]


class _Commands(TyperGroup):
    """The root command; its option ``--plugin`` is every command's too."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        shared = [param for param in self.params if param.name == "plugin"]
        for command in self.commands.values():
            command.params += shared


app = typer.Typer(
    name="antibackdoor",
    cls=_Commands,
    help="Train a clean image classifier on data that may be poisoned, and name the images that should not be there.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"antibackdoor {version('antibackdoor')}")
        raise typer.Exit


def _load_plugins(paths: list[str] | None) -> None:
    if paths:
        from antibackdoor.api import load_plugin

        for path in paths:
            load_plugin(path)


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        expose_value=False,
        callback=_load_plugins,
        help="Python file with attacks, defences or signals of your own; repeatable. See docs/extend.md.",
    ),
]
Version = Annotated[bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Say the version.")]


@app.callback()
def _root(version: Version = False, plugin: Plugins = None) -> None:
    pass


for _command in (demo, train, scan, poison, predict, evaluate, export, bench, review, verify, compare):
    app.command()(_command)


@app.command()
def report(run: RunFolder, format_: Formats = None) -> None:
    """Write the report of a finished run again; with --format, give its result out in a format of ``scan``."""
    from antibackdoor.report import write

    if format_:
        cli_formats.emit(run, cli_formats.requests(format_))
    else:
        typer.echo(f"report: {write(run)}")


@app.command("list")
def list_(
    family: Annotated[str, typer.Argument(metavar="attacks|defences|signals|models|datasets", help="What to list.")],
) -> None:
    """List what there is to choose from."""
    from antibackdoor.catalogue import FAMILIES, describe

    if family not in FAMILIES:
        from antibackdoor.errors import UnknownNameError

        raise UnknownNameError("family", family, FAMILIES)
    lines = describe(family)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}")


@app.command()
def doctor() -> None:
    """Say what this machine offers and what is missing."""
    from antibackdoor.catalogue import diagnose

    lines = diagnose()
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        typer.echo(f"{name:<{width}}  {text}")


def main() -> None:
    """Run the command; every way out has its exit code (see ``cli_exits``)."""
    cli_exits.run(app)


if __name__ == "__main__":
    main()
