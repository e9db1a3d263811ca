"""What can be compared, as texts: "plain", "nag:scale=1", "epsilon_scaling:scale=1.002|1.005", "nag:scale=1+calibrated".

    method      = part { "+" part }
    part        = name [ ":" key "=" value { "," key "=" value } ]
    value       = one { "|" one }                    candidates, one of which is chosen before anything is reported
    one         = number | true | false | none | word | start ".." end (an interval, either end may be missing)

A key that a part does not have goes to the one part before it that has it: "nag+calibrated:scale=2" is
"nag:scale=2+calibrated". Keys and their types are the fields of the corrections; a key whose
value is a network takes a folder or a Hub id.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Method", "Part", "method_names", "named_corrections", "parse_method", "parse_methods"]

FROM_ONE = ("domain_guidance", "class_interval")  # their scale is guidance_scale, which counts from 1
NULL_INTERVAL = (-2.5, None)  # of the null branch, as for noise guidance
GUIDANCE = ("nag", "nag_corrected", "nag_gradient")


@cache
def named_corrections() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Module, class and fixed values of each name: the `texts` of the classes in this folder, read without an import."""
    found: dict[str, tuple[str, str, dict[str, Any]]] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "\n    texts: ClassVar = {" not in source:
            continue  # parsing costs, and `nag --help` waits for it
        for node in (one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)):
            for item in (one for one in node.body if isinstance(one, ast.AnnAssign)):
                if ast.unparse(item.target) == "texts" and item.value is not None:
                    for name, fixed in ast.literal_eval(item.value).items():
                        found[name] = (f"nag.corrections.{path.stem}", node.name, fixed)
    return found


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What a name stands for: its keys with their types and defaults, how it is built, where the pipeline takes it."""

    keys: Mapping[str, Any]
    defaults: Mapping[str, Any]
    build: Callable[..., Any]
    argument: str | None
    on: Callable[[Any], bool] = lambda values: True


def _of_fields(name: str) -> _Kind:
    """A correction, some of whose fields are fixed by its name."""
    module, class_name, fixed = named_corrections()[name]
    cls: Any = getattr(import_module(module), class_name)
    hints, free = get_type_hints(cls), [item for item in fields(cls) if item.name not in fixed]
    keys = {item.name: hints[item.name] for item in free}
    defaults: dict[str, Any] = {item.name: item.default for item in free}
    if "network" in keys and name != "null_autoguidance":
        defaults["network"] = MISSING
    if name == "null_autoguidance":
        defaults["interval"] = NULL_INTERVAL
    if name in FROM_ONE:
        keys, defaults = (
            {"guidance_scale" if k == "scale" else k: v for k, v in d.items()} for d in (keys, defaults)
        )
        defaults["guidance_scale"] = 1.0

    def of(values: dict[str, Any]) -> dict[str, Any]:
        values = ({"interval": NULL_INTERVAL} if name == "null_autoguidance" else {}) | values
        if name in FROM_ONE:
            values["scale"] = values.pop("guidance_scale", 1.0) - 1
        return fixed | values

    def on(values: dict[str, Any]) -> bool:
        return bool(cls.on.fget(SimpleNamespace(**of(defaults | values))))

    argument = "noise_guidance" if name in GUIDANCE else "corrections"
    return _Kind(
        keys=keys, defaults=defaults, build=lambda **values: cls(**of(values)), argument=argument, on=on
    )


@cache
def _kinds() -> dict[str, _Kind]:
    """All methods by name."""
    kinds = {
        "plain": _Kind(keys={}, defaults={}, build=lambda: None, argument=None),
        "calibrated": _Kind(keys={}, defaults={}, build=lambda: None, argument="noise_calibration"),
        "class_guidance": _Kind(
            keys={"scale": float},
            defaults={"scale": 1.0},
            build=lambda scale: scale,
            argument="guidance_scale",
            on=lambda values: values.get("scale", 1.0) != 1,
        ),
    }
    return kinds | {name: _of_fields(name) for name in named_corrections()}


def method_names() -> tuple[str, ...]:
    """The names that a method may be made of; needs no heavy import."""
    others = [name for name in named_corrections() if name not in GUIDANCE]
    return ("plain", *GUIDANCE, "calibrated", *others, "class_guidance")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One name with its values, or with candidates for them."""

    name: str
    values: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    @property
    def label(self) -> str:
        """The part as text."""
        given = [f"{key}={'|'.join(map(shown, found))}" for key, found in self.values]
        return f"{self.name}:{','.join(given)}" if given else self.name


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is switched on, in the order in which it acts; see the module's text for how it is written."""

    parts: tuple[Part, ...]

    @property
    def label(self) -> str:
        """The method as text, from which `parse_method` makes it again."""
        return "+".join(part.label for part in self.parts)

    @property
    def name(self) -> str:
        """The method without its values."""
        return "+".join(part.name for part in self.parts)

    @property
    def calibrated(self) -> bool:
        """Whether it needs a calibration, `noise_calibration`, beside its arguments."""
        return any(part.name == "calibrated" for part in self.parts)

    def candidates(self) -> list[Method]:
        """Every method that it stands for: the product over the candidates of its values."""
        places = [
            (i, key, found)
            for i, part in enumerate(self.parts)
            for key, found in part.values
            if len(found) > 1
        ]
        made = []
        for choice in itertools.product(*(found for _, _, found in places)):
            picked = {(i, key): value for (i, key, _), value in zip(places, choice, strict=True)}
            parts = [
                Part(
                    name=part.name,
                    values=tuple((key, (picked.get((i, key), found[0]),)) for key, found in part.values),
                )
                for i, part in enumerate(self.parts)
            ]
            made.append(Method(parts=tuple(parts)))
        return made

    def arguments(self, device: Any = "cpu") -> dict[str, Any]:
        """Keyword arguments for a pipeline, of a method without candidates; to a `calibrated` one add `noise_calibration`."""
        kinds, found = _kinds(), dict[str, Any]()
        corrections = []
        for part in self.parts:
            kind = kinds[part.name]
            if kind.argument is None or kind.argument == "noise_calibration":
                continue
            built = kind.build(
                **{key: _loaded(value, kind.keys[key], device) for key, (value,) in part.values}
            )
            if kind.argument == "guidance_scale":
                found[kind.argument] = built
            else:
                corrections.append(built)
        return found | ({"corrections": corrections} if corrections else {})


def parse_methods(texts: Iterable[str]) -> list[Method]:
    """Reads methods.

    >>> [method.label for method in parse_methods(["plain", "nag+calibrated:scale=0.5|1"])]
    ['plain', 'nag:scale=0.5|1+calibrated']
    """
    methods = [parse_method(text) for text in texts]
    labels = [method.label for method in methods]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(
            f"methods must be one or more that differ, got {', '.join(map(repr, labels)) or 'none'}. "
            f"Choose of {', '.join(method_names())}."
        )
    return methods


def parse_method(text: str) -> Method:
    """Reads one method and builds all its candidates once, so that whatever is wrong with one is found here.

    Networks named by folders are not loaded.
    """
    kinds = _kinds()
    names, given = [], list[list[tuple[str, str]]]()
    for piece in re.split(r"\+(?=[A-Za-z_]\w*(?:[:+]|$))", text.strip()):
        name, _, rest = piece.partition(":")
        if name not in kinds:
            raise ValueError(
                f"methods must be made of {', '.join(method_names())}, got {name!r} in {text!r}."
            )
        names.append(name)
        given.append([])
        for pair in re.split(r",(?=\w+=)", rest) if rest else []:
            key, equals, value = pair.partition("=")
            if not equals or not value:
                raise ValueError(
                    f"methods must give values as key=value, got {pair!r} in {text!r}. Write for example nag:scale=1."
                )
            owner = _owner(names, key, text)
            given[owner].append((key, value))
    keys = [f"{name}:{key}" for name, pairs in zip(names, given, strict=True) for key, _ in pairs]
    for must, wrong in (
        ("have 'plain' alone", names if "plain" in names and len(names) > 1 else ()),
        ("have one kind of noise guidance", names if sum(name in GUIDANCE for name in names) > 1 else ()),
        ("have each part and give each key once", _twice(names) or _twice(keys)),
        (
            "leave out nothing that a part needs",
            [key for name in names for key in _needed(name) if key not in keys],
        ),
    ):
        if wrong:
            raise ValueError(f"methods must {must}, got {', '.join(wrong)} in {text!r}.")
    parts = []
    for name, pairs in zip(names, given, strict=True):
        values = tuple(
            (key, tuple(read_value(one, kinds[name].keys[key], f"{name}:{key}") for one in value.split("|")))
            for key, value in pairs
        )
        parts.append(Part(name=name, values=values))
    method = Method(parts=tuple(parts))
    candidates = method.candidates()
    for i, part in enumerate(parts):
        given_values = ({key: value for key, (value,) in one.parts[i].values} for one in candidates)
        if not any(kinds[part.name].on(values) for values in given_values):
            raise ValueError(
                f"methods must switch something on, got {part.label!r}, which leaves sampling as it is. Use 'plain' for that."
            )
    for candidate in candidates:
        if not any(is_network(kinds[p.name].keys[key]) for p in candidate.parts for key, _ in p.values):
            candidate.arguments()
    return method


def _twice(words: list[str]) -> list[str]:
    return sorted({word for word in words if words.count(word) > 1})


def _needed(name: str) -> list[str]:
    """The keys without a default, as NAME:KEY."""
    return [f"{name}:{key}" for key, default in _kinds()[name].defaults.items() if default is MISSING]


def _owner(names: list[str], key: str, text: str) -> int:
    """Which of the parts so far a key belongs to: the last, or the only one before it that has it."""
    kinds = _kinds()
    if key in kinds[names[-1]].keys:
        return len(names) - 1
    having = [i for i, name in enumerate(names) if key in kinds[name].keys]
    if len(having) != 1:
        valid = ", ".join(kinds[names[-1]].keys) or "no keys"
        raise ValueError(f"{names[-1]} must be given {valid}, got {key!r} in {text!r}.")
    return having[0]


def _loaded(value: Any, hint: Any, device: Any) -> Any:
    """The network of a pipeline's folder or Hub id; the folder of an adapter or a head and every other value as it is."""
    if value is None or not is_network(hint):
        return value
    from nag.files import fetch_beside
    from nag.network.table import load_network

    if str in get_args(hint) and fetch_beside(value, "model_index.json") is None:
        return value
    return load_network(value).float().eval().requires_grad_(False).to(device)


# Values as texts: read by the type of the field that they are for, and written again


def is_network(hint: Any) -> bool:
    """Whether a field holds a network, which is named by a folder here."""
    from torch import nn

    return any(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in (hint, *get_args(hint)))


def read_value(text: str, hint: Any, where: str) -> Any:
    """A value of a field's type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in kinds:
        try:
            return _read_one(text.strip(), kind)
        except (ValueError, KeyError):
            continue
    wanted = " or ".join(_described(kind) for kind in kinds)
    raise ValueError(f"{where} must be {wanted}, got {text!r}.")


def _read_one(text: str, kind: Any) -> Any:
    if kind in (int, float) and math.isfinite(number := kind(text)):
        return number
    if get_origin(kind) is tuple:
        start, end = text.split("..")
        return tuple(float(part) if part else None for part in (start, end))
    if text.lower() != "none" and (kind is str or (isinstance(kind, type) and is_network(kind))):
        return text
    words: dict[Any, dict[str, Any]] = {
        kind: {str(value): value for value in get_args(kind)},
        types.NoneType: {"none": None},
        bool: {"true": True, "false": False},
    }
    return words[kind][text.lower()]


def _described(kind: Any) -> str:
    if kind is types.NoneType:
        return "none"
    if kind is bool:
        return "true or false"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "an interval start..end"
    return {int: "an integer", float: "a number", str: "a word"}.get(kind, "a folder or Hub id")


def shown(value: Any) -> str:
    """A value as text, from which `read_value` makes it again."""
    if isinstance(value, tuple):
        return "..".join("" if end is None else f"{end:.10g}" for end in value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)
