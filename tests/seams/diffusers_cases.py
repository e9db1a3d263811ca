"""The pipeline test cases of a source tree of diffusers: their dummy components and inputs, not their tests."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from _pytest.mark import MarkGenerator

__all__ = ["Found", "find", "open_tree"]

PACKAGE = "diffusers_tests"


@dataclass(frozen=True)
class Found:
    """One test case of diffusers: a class that knows dummy components and inputs."""

    name: str
    cls: type

    def build(self) -> Any:
        """The pipeline."""
        torch.manual_seed(0)
        module = sys.modules[self.cls.pipeline_class.__module__]  # type: ignore[attr-defined]
        if not hasattr(
            module, "ftfy"
        ):  # an optional package that mends broken letters, which there are none of
            module.ftfy = types.SimpleNamespace(fix_text=lambda text: text)  # type: ignore[attr-defined]
        pipe = self.cls.pipeline_class(**self._case().get_dummy_components())  # type: ignore[attr-defined]
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self) -> dict[str, Any]:
        """The arguments of a call."""
        make = self._case().get_dummy_inputs
        return dict(make("cpu") if "device" in inspect.signature(make).parameters else make())

    def _case(self) -> Any:
        return self.cls()


TOOLS = ("parameterized", "requests_mock")
"""What the tree's tests are written with, and its dummy components are not."""


class _Tool(types.ModuleType):
    """In place of a testing tool that is not installed: everything in it is a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        alone = len(arguments) == 1 and inspect.isroutine(arguments[0])
        return arguments[0] if alone else self


def open_tree(source: Path) -> None:
    """Makes the tree's `tests` importable under a name that is not ours."""
    if PACKAGE in sys.modules:
        return
    package = types.ModuleType(PACKAGE)
    package.__path__ = [str(source / "tests")]
    sys.modules[PACKAGE] = package
    for name in TOOLS:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = _Tool(name)
    for name in ("pipelines", "pipelines.test_pipelines_common"):  # two modules ask for `tests` by its name
        sys.modules[f"tests.{name}"] = importlib.import_module(f"{PACKAGE}.{name}")


def find(source: Path) -> tuple[list[Found], dict[str, str]]:
    """The cases that differ in pipeline, components or inputs, and the reasons why modules do not import."""
    with patch.object(
        pytest, "mark", MarkGenerator(_ispytest=True)
    ):  # they mark tests with words of their own
        return _find(source)


def _find(source: Path) -> tuple[list[Found], dict[str, str]]:
    open_tree(source)
    cases: dict[tuple[Any, ...], Found] = {}
    absent = {}
    for path in sorted((source / "tests" / "pipelines").glob("*/test_*.py")):
        name = f"{path.parent.name}.{path.stem}"
        try:
            module = importlib.import_module(f"{PACKAGE}.pipelines.{name}")
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__ and _is_case(cls):
                made = (cls.pipeline_class, cls.get_dummy_components, cls.get_dummy_inputs)  # type: ignore[attr-defined]
                cases.setdefault(made, Found(f"{path.parent.name}.{cls.__name__}", cls))
    torch.use_deterministic_algorithms(False)  # their modules switch it on
    return list(cases.values()), absent


def _is_case(cls: type) -> bool:
    if not isinstance(getattr(cls, "pipeline_class", None), type) or cls.__name__.endswith("Mixin"):
        return False
    if not (hasattr(cls, "get_dummy_components") and hasattr(cls, "get_dummy_inputs")):
        return False
    parameters = list(inspect.signature(cls.get_dummy_components).parameters.values())[1:]
    return all(parameter.default is not parameter.empty for parameter in parameters)
