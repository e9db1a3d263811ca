"""The command `nag`, run as a user runs it, in this process."""

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO

from nag.cli.main import main


@dataclass(frozen=True)
class Done:
    """How it ended, and all that it said."""

    exit_code: int
    output: str


def nag(*words: object) -> Done:
    """Runs `nag` with some words."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            main([str(word) for word in words])
        except SystemExit as end:
            return Done(int(end.code or 0), said.getvalue())
    return Done(0, said.getvalue())
