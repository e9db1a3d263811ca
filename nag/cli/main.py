"""The command `nag`. Nothing heavy is imported before a command really runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, Union

import tyro
from tyro.conf import OmitSubcommandPrefixes, PositionalMetavarFromFieldName, subcommand

__all__ = ["COMMANDS", "INTERRUPTED", "WRONG_INPUT", "main"]

WRONG_INPUT, INTERRUPTED = 2, 130  # exit codes

COMMANDS: dict[str, Any] = {
    "shift": ("nag.cli.shift", "ShiftOptions"),
    "calibrate": ("nag.cli.calibrate", "CalibrateOptions"),
    "compare": ("nag.cli.compare", "CompareOptions"),
    "tune": ("nag.cli.tune", "TuneOptions"),
    "accuracy": ("nag.cli.accuracy", "AccuracyOptions"),
    "blind-check": ("nag.cli.blind_check", "BlindCheckOptions"),
    "weak-check": ("nag.cli.weak_check", "WeakCheckOptions"),
    "finetune": {
        "denoiser": ("nag.finetune.denoiser", "DenoiserOptions"),
        "regressor": ("nag.finetune.regressor", "RegressorOptions"),
        "distill": ("nag.finetune.distill", "DistillOptions"),
        "merge": ("nag.finetune.merge", "MergeOptions"),
    },
}
"""The module of every command, whose `run` takes an instance of the class of its options."""


def one_of(commands: dict[str, Any]) -> Any:
    """The options of one of some commands, as a type for tyro."""
    found: list[Any] = []
    for name, place in commands.items():
        if isinstance(place, dict):
            made = subcommand(
                name,
                constructor=one_of(place),
                description="Train a denoiser, a regressor or a student; merge checkpoints.",
            )
        else:
            made = subcommand(name, constructor=getattr(import_module(place[0]), place[1]))
        found.append(Annotated[Any, made])
    return Union[tuple(found)]  # noqa: UP007


def main(words: Sequence[str] | None = None) -> None:
    """Runs `nag`; wrong input ends with a message and exit code 2, an interruption with 130."""
    words = sys.argv[1:] if words is None else words
    flags = [word.partition("=")[0].replace("-", "_") for word in words if word.startswith("--")]
    twice = next((flag for flag in flags if flags.count(flag) > 1), None)
    if twice is not None:  # the last one alone would count
        print(
            f"Error: --{twice[2:]} must be given once, got it twice. Write several values as --steps 10 20.",
            file=sys.stderr,
        )
        sys.exit(WRONG_INPUT)
    options = tyro.cli(
        one_of(COMMANDS),
        prog="nag",
        description="Noise Awareness Guidance for diffusers: measure and correct the noise shift of diffusion samplers.",
        args=words,
        use_underscores=True,
        config=(OmitSubcommandPrefixes, PositionalMetavarFromFieldName),
    )
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
