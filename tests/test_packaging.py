"""What is installed: the packages, their data, the public names and the declared dependencies."""

import ast
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import nag

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def folder(package: str) -> Path:
    """The folder of a package according to package-dir, as setuptools finds it."""
    mapping, parts = SETUPTOOLS["package-dir"], package.split(".")
    for n in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:n])) in mapping:
            return ROOT.joinpath(mapping[prefix], *parts[n:])
    raise LookupError(package)


def sources() -> list[Path]:
    return [path for package in SETUPTOOLS["packages"] for path in sorted(folder(package).glob("*.py"))]


def test_packages_are_the_folders_with_an_init():
    inside = {path.parent for path in (ROOT / "nag").rglob("__init__.py")}
    mapped = {ROOT / "nag" / name for name in ("pipelines", "finetune")}
    found = {".".join(path.relative_to(ROOT).parts) for path in inside | mapped}
    assert found == set(SETUPTOOLS["packages"])
    for package in SETUPTOOLS["packages"]:
        assert (folder(package) / "__init__.py").is_file(), package


@pytest.mark.parametrize("name", ["pipelines", "finetune"])
def test_links_are_relative_and_reach_the_mapped_folder(name):
    link = ROOT / "nag" / name
    assert link.readlink() == Path("..") / name
    assert link.resolve() == folder(f"nag.{name}")


def test_package_data_exist():
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            assert list(folder(package).glob(pattern)), f"{package}: {pattern}"


def test_every_file_that_is_not_python_is_package_data():
    declared = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in folder(package).glob(pattern)
    }
    present = {
        path
        for package in SETUPTOOLS["packages"]
        for path in folder(package).iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    }
    assert present == declared


@pytest.mark.parametrize("name", nag.__all__)
def test_public_names_resolve_and_are_documented(name):
    value = getattr(nag, name)
    assert value.__doc__
    assert value.__module__.startswith("nag.")


def test_a_public_name_does_not_hide_a_module():
    modules = {path.stem for path in (ROOT / "nag").iterdir()}
    assert not modules & set(nag.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NAG"):
        _ = nag.NAG
    assert set(nag.__all__) <= set(dir(nag))


def test_import_nag_alone_imports_nothing_heavy():
    code = "import sys, nag; print(sorted({'torch', 'diffusers', 'numpy', 'sklearn'} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_imported_distributions_are_declared():
    top_level = {
        name.split(".")[0]
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module and not node.level
            else []
        )
    }
    declared = {canonical(Requirement(text).name) for text in PROJECT["project"]["dependencies"]}
    declared |= {
        canonical(Requirement(text).name)
        for text in PROJECT["project"]["optional-dependencies"]["tensorboard"]
    }
    provided_by = importlib.metadata.packages_distributions()
    for name in top_level - set(sys.stdlib_module_names) - {"nag"}:
        assert declared & {canonical(distribution) for distribution in provided_by.get(name, [])}, (
            f"{name} is not declared"
        )


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_dependencies_have_a_lower_bound_and_no_upper_one():
    for text in PROJECT["project"]["dependencies"]:
        assert {specifier.operator for specifier in Requirement(text).specifier} == {">="}, text


@pytest.mark.slow
def test_wheel_imports_from_elsewhere(tmp_path):
    """Build the wheel from the checkout, unpack it, and import everything without the checkout on the path."""
    source = (
        tmp_path / "source"
    )  # a copy: setuptools leaves build/ behind, and would pack what an old one holds
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("nag", "pipelines", "finetune"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"noise_awareness_guidance-{nag.__version__}-py3-none-any")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {"nag"}
    built = {
        str(path.relative_to(site))
        for path in site.rglob("*")
        if path.is_file() and path.suffix != ".dist-info"
    }
    for package, patterns in SETUPTOOLS["package-data"].items():
        for pattern in patterns:
            for path in folder(package).glob(pattern):
                assert str(Path(*package.split("."), path.name)) in built
    code = f"""
import importlib, pkgutil, sys
sys.path.insert(0, {str(site)!r})
import nag
assert nag.__file__.startswith({str(site)!r}), nag.__file__
names = [module.name for module in pkgutil.walk_packages(nag.__path__, "nag.")]
for name in names:
    importlib.import_module(name)
for name in nag.__all__:
    getattr(nag, name)
print(*names)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = {
        ".".join([package, path.stem])
        for package in SETUPTOOLS["packages"]
        for path in folder(package).glob("*.py")
    }
    assert set(done.stdout.split()) >= {
        name for name in expected if not name.endswith(("__init__", "__main__"))
    }


DOCS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_files_and_modules_that_the_docs_name_are_there(page):
    text = page.read_text(encoding="utf-8")
    paths = {
        path
        for path in re.findall(r"`((?:nag|pipelines|finetune|tests|examples|docs)/[\w./*-]*)", text)
        if path != "nag/corrections/shorter_noise.py"  # of a recipe
    }
    assert {path for path in paths if not any(ROOT.glob(path.rstrip("/")))} == set()
    for name in set(re.findall(r"`(nag(?:\.\w+)+)", text)):
        value, parts = nag, name.split(".")[1:]
        for i, part in enumerate(parts):
            try:
                value = getattr(value, part)
            except AttributeError:
                value = importlib.import_module(".".join(("nag", *parts[: i + 1])))
        assert value is not None
