"""The rules of the house: arrows one way, few modules beside the wings, nobody above the command line."""

import ast

import pytest

from tests.house import ARROWS, BESIDE, ROOT, below, floors, graph, module_of, sources, wing_of

EDGES = graph()


@pytest.mark.parametrize("module", sorted(EDGES))
def test_arrows_point_one_way(module):
    wing = wing_of(module)
    if wing == "":
        return
    allowed = {wing, *below(wing)}
    assert {one for one in EDGES[module] if wing_of(one) not in allowed} == set()


def test_every_wing_has_its_place_and_few_modules_lie_beside():
    assert {wing_of(module) for module in EDGES} - {""} == set(ARROWS)
    assert {path.stem for path in (ROOT / "nag").glob("*.py")} - {"__init__"} == set(BESIDE)


def test_nobody_imports_the_command_line():
    assert {
        a for a, many in EDGES.items() if any(wing_of(b) == "cli" for b in many) and wing_of(a) != "cli"
    } == set()


def test_the_floors_of_a_chain_are_counted():
    assert floors({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}) == 3


def test_only_the_seams_replace_what_a_pipeline_calls():
    for path in sources("nag", "pipelines", "finetune"):
        stored = [
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        ]
        found = [
            name for name in stored if name.endswith(("scheduler.step", ".set_timesteps", ".prepare_latents"))
        ]
        assert not found or wing_of(module_of(path)) == "seams", path
