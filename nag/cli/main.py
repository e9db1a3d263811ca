"""The command `nag`. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import field, fields, make_dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Union, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, PositionalMetavarFromFieldName, subcommand

__all__ = ["COMMANDS", "INTERRUPTED", "WRONG_INPUT", "main"]

WRONG_INPUT, INTERRUPTED = 2, 130  # exit codes

COMMANDS: dict[str, Any] = {
    "diagnose": ("nag.cli.diagnose", "DiagnoseOptions"),
    "finetune": {
        "denoiser": ("nag.finetune.denoiser", "DenoiserOptions"),
        "regressor": ("nag.finetune.regressor", "RegressorOptions"),
        "distill": ("nag.finetune.distill", "DistillOptions"),
        "direction": ("nag.finetune.direction", "DirectionOptions"),
        "merge": ("nag.finetune.merge", "MergeOptions"),
    },
    "accuracy": ("nag.cli.accuracy", "AccuracyOptions"),
    "shift": ("nag.cli.shift", "ShiftOptions"),
    "calibrate": ("nag.cli.calibrate", "CalibrateOptions"),
    "features": ("nag.cli.features", "FeaturesOptions"),
    "compare": ("nag.cli.compare", "CompareOptions"),
    "tune": ("nag.cli.tune", "TuneOptions"),
    "weak-check": ("nag.cli.weak_check", "WeakCheckOptions"),
    "blind-check": ("nag.cli.blind_check", "BlindCheckOptions"),
}
"""The module of every command, in the order of use, whose `run` takes an instance of the class of its options."""


def one_of(commands: dict[str, Any], words: Sequence[str]) -> Any:
    """The options of one of some commands, as a type for tyro; flags are grouped where the words name the command."""
    found: list[Any] = []
    for name, place in commands.items():
        if isinstance(place, dict):
            made = subcommand(
                name,
                constructor=one_of(place, words),
                description="Train a denoiser, a regressor, a student or a direction head; merge checkpoints.\n\n"
                "nag finetune regressor MODEL --data IMAGES --output_dir MODEL/regressor",
            )
        else:
            options = getattr(import_module(place[0]), place[1])
            made = subcommand(
                name,
                constructor=grouped(options) if name in words else options,
                description=inspect.getdoc(options),
            )
        found.append(Annotated[Any, made])
    return Union[tuple(found)]  # noqa: UP007


def grouped(options: type) -> type:
    """Options with a field for every class that declares some, a group of flags in the help; `joined` makes the plain ones."""
    texts, owner = dict[str, str](), dict[str, type]()
    for part in reversed(options.__mro__[:-1]):
        (node,) = ast.parse(inspect.getsource(part)).body
        assert isinstance(node, ast.ClassDef)
        for item, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                owner.setdefault(item.target.id, part)
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    texts[item.target.id] = " ".join(str(after.value.value).split())
    hints, groups = get_type_hints(options, include_extras=True), dict[type, list[Any]]()
    for one in fields(options):
        help_text = {"help": texts[one.name]} if one.name in texts else {}
        made: Any = field(
            default=one.default, default_factory=one.default_factory, kw_only=True, metadata=help_text
        )
        groups.setdefault(owner[one.name], []).append((one.name, hints[one.name], made))

    first, *others = groups
    order = [
        first,
        *sorted(others, key=lambda part: -len(part.__mro__)),
    ]  # then what is most this command's own
    titles = {part: part.__name__.removesuffix("Options").lower() for part in order}
    kinds = [
        (title, Annotated[make_dataclass(title, groups[part]), OmitArgPrefixes], field(kw_only=True))
        for part, title in titles.items()
    ]

    def joined(self: Any) -> Any:
        return options(
            **{name: value for title in titles.values() for name, value in vars(getattr(self, title)).items()}
        )

    return make_dataclass(options.__name__, kinds, namespace={"joined": joined})


def main(words: Sequence[str] | None = None) -> None:
    """Runs `nag`; wrong input ends with a message and exit code 2, an interruption with 130."""
    words = sys.argv[1:] if words is None else words
    if list(words) == ["--version"]:
        print(f"nag {version('noise-awareness-guidance')}")
        return
    flags = [word.partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    twice = next((flag for flag in flags if flags.count(flag) > 1), None)
    if twice is not None:  # the last one alone would count
        print(
            f"Error: --{twice[2:]} must be given once, got it twice. Write several values as --steps 10 20.",
            file=sys.stderr,
        )
        sys.exit(WRONG_INPUT)
    try:
        try:
            found = tyro.cli(
                one_of(COMMANDS, words),
                prog="nag",
                description="Noise Awareness Guidance for diffusers: measure and correct the noise shift of diffusion samplers.",
                args=words,
                use_underscores=True,
                config=(OmitSubcommandPrefixes, PositionalMetavarFromFieldName),
            )
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the help, into `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    options = found.joined() if hasattr(found, "joined") else found
    try:
        sys.modules[type(options).__module__].run(options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt as error:
        print(f"Interrupted: {error}" if str(error) else "Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
