"""The examples in docstrings run, and every module has a docstring."""

import doctest
import importlib
import pkgutil

import pytest

import nag

MODULES = ["nag", *(module.name for module in pkgutil.walk_packages(nag.__path__, "nag."))]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).failed == 0


def test_there_are_doctests():
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(len(test.examples) for module in modules for test in doctest.DocTestFinder().find(module)) >= 1
