"""Commands made from frozen dataclasses: one field is one flag, with its type, default and help.

A field whose type is a tuple of any length is a list: its flag may be repeated or take several words, as in
`--steps 10 20 50`. Nothing heavy is imported here.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

__all__ = ["add_command", "command", "option", "repeat_flags"]


def option(
    default: Any = MISSING, help: str = "", *, positional: bool = False, aliases: tuple[str, ...] = ()
) -> Any:
    """A field of a keyword-only dataclass, with its help text.

    Args:
        default: without one, the field must be given.
        help: one line.
        positional: an argument without a flag.
        aliases: further flags, such as `--scheduler` for `--schedulers`.
    """
    metadata = {"help": help, "positional": positional, "aliases": aliases}
    return field(default=default, metadata=metadata, kw_only=True)


def add_command(
    app: typer.Typer, name: str, options: type[Any], run: Callable[[Any], object], help: str
) -> None:
    """Adds to an application a command whose options are the fields of a dataclass; see `command`."""

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, list(repeat_flags(args, options)))

    app.command(name, cls=Command)(command(options, run, help))


def _lists(options: type[Any]) -> dict[str, type]:
    """The fields that are lists, and what they are lists of."""
    found = {name: (get_origin(kind), get_args(kind)) for name, kind in get_type_hints(options).items()}
    return {name: args[0] for name, (origin, args) in found.items() if origin is tuple and args[1:] == (...,)}


def repeat_flags(words: Sequence[str], options: type[Any]) -> Iterator[str]:
    """`--steps 10 20` as `--steps 10 --steps 20`, for the fields that are lists.

    A list ends at the next flag, at `--`, and, if it is of numbers, at a word that is none.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Options:
    ...     steps: tuple[int, ...] = option((20,), "Sampling steps.")
    >>> list(repeat_flags(["--steps", "10", "20", "model"], Options))
    ['--steps', '10', '--steps', '20', 'model']
    """
    kinds = _lists(options)
    flags = {
        flag: kinds[item.name]
        for item in fields(options)
        if item.name in kinds
        for flag in (f"--{item.name}", *item.metadata["aliases"])
    }
    current, taken = None, 0
    for word in words:
        if word in flags:
            current, taken = word, 0
            continue
        if current is not None:
            number = flags[current] in (int, float)
            if taken == 0 or (_is_number(word) if number else not word.startswith("-")):
                yield current
                taken += 1
            else:
                current = None
        yield word
    if current is not None and taken == 0:
        yield current  # the parser says that its value is missing


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def command(options: type[Any], run: Callable[[Any], object], help: str) -> Callable[..., None]:
    """A function with one typed keyword per field, which typer turns into a command.

    Whatever is wrong ends with a message and exit code 2, an interruption with 130.

    Args:
        options: the dataclass.
        run: called with an instance of it.
        help: what the command does.
    """
    hints, lists = get_type_hints(options), _lists(options)

    def main(**values: Any) -> None:
        try:
            run(options(**{name: tuple(v) if name in lists else v for name, v in values.items()}))
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            typer.secho(f"Error: {error}", fg="red", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.secho(f"Interrupted: {error}" if str(error) else "Interrupted.", err=True)
            raise typer.Exit(130) from error

    parameters = []
    for item in fields(options):
        kind, required = hints[item.name], item.default is MISSING
        default: Any = inspect.Parameter.empty if required else item.default
        if item.name in lists:
            kind = types.GenericAlias(list, lists[item.name])
            default = default if required else list(default)
        if item.metadata["positional"]:
            shown: Any = typer.Argument(help=item.metadata["help"], show_default=not required)
        else:
            flag = f"--{item.name}"
            names = (f"{flag}/--no_{item.name}",) if kind is bool and item.default else (flag,)
            shown = typer.Option(
                *names,
                *item.metadata["aliases"],
                help=item.metadata["help"],
                show_default=item.default not in (MISSING, None, ()),
            )
        parameters.append(
            inspect.Parameter(
                item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
            )
        )
    main.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    main.__annotations__ = {p.name: p.annotation for p in parameters}
    main.__doc__ = help
    return main
