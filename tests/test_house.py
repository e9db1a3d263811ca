"""The rules of the house: arrows one way, few modules beside the wings, nobody above the command line."""

import ast

import pytest

from nag.network.rows import REFUSED as NETWORKS_REFUSED
from nag.network.rows import ROWS
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


def test_only_the_reader_of_schedulers_knows_their_configuration():
    """Elsewhere a scheduler's configuration is only passed on as a whole, to `from_config`."""
    reader = "nag.noise.read"
    found = {}
    for path in sources("nag", "pipelines", "finetune"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        whole = {
            id(argument)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("from_config")
            for argument in call.args
        }
        read = {
            ast.unparse(node)
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("scheduler.config")
            if id(node) not in whole
        }
        if read and module_of(path) != reader:
            found[module_of(path)] = read
    assert found == {}


def test_only_the_table_of_networks_knows_their_names():
    """Names of network classes stand in the rows, in configurations that name their own network, and in texts."""
    known = {row.name for row in ROWS} | set(NETWORKS_REFUSED)
    found = {}
    for path in sources("nag", "pipelines", "finetune"):
        named = {
            node.value
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and node.value in known
        }
        if named and module_of(path) != "nag.network.rows":
            found[module_of(path)] = named
    assert found == {}
