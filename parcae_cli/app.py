"""The commands of `parcae`, by name. A command's module is imported when the command is run, not before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

# What typer raises for wrong arguments: the base class of its public errors.
UsageProblem: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


@dataclass(frozen=True)
class LazyCommand:
    """Where a command lives: `module` has an `app` (a typer of sub-commands) or a function of its name."""

    module: str
    help: str


COMMANDS = {
    "init": LazyCommand("parcae_cli.commands.init", "Write a commented file to begin with."),
    "launch": LazyCommand("parcae_cli.commands.launch", "Train a model through preemptions."),
    "status": LazyCommand("parcae_cli.commands.status", "Show a job live, or how it ended."),
    "resume": LazyCommand("parcae_cli.commands.resume", "Go on with a job whose launcher was killed."),
    "down": LazyCommand("parcae_cli.commands.down", "End jobs and everything they rented."),
    "gc": LazyCommand("parcae_cli.commands.gc", "End what crashed launches have left in a cloud."),
    "logs": LazyCommand("parcae_cli.commands.logs", "Show what happened to a job, or what its nodes wrote."),
    "ssh": LazyCommand("parcae_cli.commands.ssh", "Open a shell on a node of a running job."),
    "replay": LazyCommand("parcae_cli.commands.replay", "Compare policies on a trace, without training."),
    "trace": LazyCommand("parcae_cli.commands.trace", "Look at availability traces, or make one."),
    "models": LazyCommand("parcae_cli.commands.models", "List the models that can be trained or replayed."),
    "profile": LazyCommand("parcae_cli.commands.profile", "Measure a model on this machine, for planning."),
    "doctor": LazyCommand("parcae_cli.commands.doctor", "Check that this machine is ready."),
}


class LazyGroup(TyperGroup):
    """The group of all commands. Its help needs their names and first lines only."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that has a name and a line of help."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(name=cmd_name, help=COMMANDS[cmd_name].help, rich_markup_mode=None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself, at last imported."""
        for known in COMMANDS:
            self.commands[known] = self.get_command(ctx, known)  # typer's "Did you mean" looks here
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, load(name) if name and stand_in else stand_in, rest


def load(name: str) -> Any:
    """Import a command's module and make typer's command of it."""
    module = import_module(COMMANDS[name].module)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(name)(getattr(module, name))
    loaded = typer.main.get_command(app)
    loaded.name = name
    _refuse_endless(loaded)
    return loaded


def _refuse_endless(made: Any) -> None:
    """Have every option of a command, and of its sub-commands, refuse `inf` and `nan`, which are floats."""
    for inner in getattr(made, "commands", {}).values():
        _refuse_endless(inner)
    for option in made.params:
        option.callback = partial(_finite, option.callback)


def _finite(then: Any, context: Any, option: Any, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.", ctx=context, param=option)
    return value if then is None else then(context, option, value)


def command() -> Any:
    """Typer's command for the whole of `parcae`."""
    app = typer.Typer(
        cls=LazyGroup,
        no_args_is_help=True,
        rich_markup_mode=None,  # plain help: rich would double the time to the first line
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_parcae)
    return typer.main.get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"parcae {version('parcae-cli')}")
        raise typer.Exit


def _parcae(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train large models on spot instances and keep training while the cloud takes them away.

    Try: parcae launch gpt-tiny
    """
