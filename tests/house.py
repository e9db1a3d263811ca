"""The picture of the house: its wings, which may import which, and how large everything is (`make stats`)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("files", "load")
"""Modules beside the wings."""

ARROWS: dict[str, tuple[str, ...]] = {
    "files": (),
    "noise": (),
    "network": ("noise",),
    "theory": ("noise",),
    "blind": ("noise", "network"),
    "corrections": ("network",),
    "seams": ("corrections",),
    "pipelines": ("blind", "seams"),
    "load": ("pipelines",),
    "shift": ("load",),
    "quality": ("shift", "theory"),
    "finetune": ("quality",),
    "cli": ("finetune",),
}
"""What each wing imports; with it, what those import, and `files`."""


def below(wing: str) -> set[str]:
    """All that a wing may import."""
    found = {"files"} if wing != "files" else set()
    for name in ARROWS[wing]:
        found |= {name} | below(name)
    return found


def sources(*folders: str) -> Iterator[Path]:
    """Python files of some folders, each once."""
    for folder in folders:
        yield from sorted(
            path
            for path in (ROOT / folder).rglob("*.py")
            if not any(parent.is_symlink() for parent in path.parents)
        )


def module_of(path: Path) -> str:
    """The name under which a file of the library is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "nag" else ("nag", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def wing_of(module: str) -> str:
    """The wing of a module; "" for the package itself."""
    return [*module.split("."), ""][1]


def imports(path: Path) -> set[str]:
    """The modules of the library that a file imports, anywhere in it."""
    known = {module_of(one) for one in sources("nag", "pipelines", "finetune")}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else str(node.module))
    return found - {"nag"}


def graph() -> dict[str, set[str]]:
    """The imports of every module."""
    return {module_of(path): imports(path) for path in sources("nag", "pipelines", "finetune")}


def floors(edges: dict[str, set[str]]) -> int:
    """The number of modules on the longest path."""
    depth: dict[str, int] = {}

    def of(name: str, above: tuple[str, ...] = ()) -> int:
        if name not in depth:
            below = [
                of(one, (*above, name)) for one in edges.get(name, ()) if one not in above and one != name
            ]
            depth[name] = 1 + max(below, default=0)
        return depth[name]

    return max(of(name) for name in edges)


def counts(*folders: str) -> dict[str, int]:
    """Files, and lines of code, docstrings and blanks; statements that raise an error of ours."""
    found = dict.fromkeys(("files", "lines", "code", "docstrings", "blank", "raises"), 0)
    for path in sources(*folders):
        text = path.read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        documented = set()
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node) is not None
            ):
                first = node.body[0]
                documented |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
            found["raises"] += isinstance(node, ast.Raise) and node.exc is not None
        blank = {i for i, line in enumerate(lines, 1) if not line.strip()}
        found["files"] += 1
        found["lines"] += len(lines)
        found["blank"] += len(blank)
        found["docstrings"] += len(documented - blank)
        found["code"] += len(lines) - len(blank | documented)
    return found


def main() -> None:
    """Print the size of the house."""
    for name, folders in {
        "library": ("nag", "pipelines", "finetune"),
        "tests": ("tests",),
        "examples": ("examples",),
    }.items():
        print(f"{name:<9}" + ", ".join(f"{value:,} {key}" for key, value in counts(*folders).items()))
    edges = graph()
    wings = {(wing_of(a), wing_of(b)) for a, many in edges.items() for b in many}
    print(f"floors of imports {floors(edges)}, arrows {sum(map(len, edges.values()))}", end=", ")
    print(
        f"between wings {sum(a != b for a, b in wings)}, beside the wings {len(BESIDE)} ({', '.join(BESIDE)})"
    )
    names = re.findall(r"import (\w+) as", (ROOT / "nag" / "__init__.pyi").read_text(encoding="utf-8"))
    print(f"public names {len(names)}: {', '.join(names)}")


if __name__ == "__main__":
    main()
