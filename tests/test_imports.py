"""What the modules import from each other, as `ast` reads it: no circles, rooms import down only, exports are complete."""

import ast
import graphlib
import tomllib
from importlib.util import resolve_name
from pathlib import Path

import pytest

import minigpt4
from minigpt4.hub import export

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]

# Rooms from the bottom up: a module imports from its own room and from those below. Names are of modules and packages in
# `minigpt4`, and the longest that fits counts. A folder that is made, or a module that moves, is entered here.
ROOMS = [
    "durable_files",
    "configuration",
    "processing",
    "modeling_minigpt4 registration",
    "hub metrics",
    "inference",
    "training",
    "serving",
    "curation",
    "evaluation",
    "experiments",
    "cli __main__",
    "trainer_scripts",
]
# {(importing module, imported one): why it is so today}. What is fixed is taken out; the tests ask for that while
# both modules are there.
RUN_UP = {
    ("modeling_minigpt4.light", "hub.from_parts"): "a class method of the model's class, which it builds",
    ("modeling_minigpt4.light", "hub.export"): "push_to_hub, a method of the class that is exported",
    ("configuration.configuration_minigpt4", "modeling_minigpt4.tower_grid"): "a tower's grid is measured by building it",
    ("processing.processing_minigpt4", "hub.export"): "push_to_hub uploads what an export writes",
    ("inference.memory", "training.frozen_llm"): "the memory of training follows from how many tokens it takes at once",
}
CIRCLES = {
    ("configuration.configuration_minigpt4", "modeling_minigpt4.tower_grid"): "a tower's grid is measured by building it",
    ("configuration.configuration_minigpt4", "configuration.presets"): "the presets' tower is configured by the same file",
    ("modeling_minigpt4.light", "hub.from_parts"): "a class method of the model's class, which it builds",
    ("modeling_minigpt4.light", "hub.export"): "push_to_hub, a method of the class that is exported",
    ("processing.processing_minigpt4", "hub.export"): "the same for the processor",
    ("processing.processing_minigpt4", "processing.for_model"): "a class method of the processor's class, which it builds",
}
# What exported code imports by its full name, for where the package is installed, and says so where it is not.
NOT_SHIPPED = {
    ("configuration.configuration_minigpt4", "configuration.presets"),
    ("configuration.configuration_minigpt4", "modeling_minigpt4.tower_grid"),
    ("modeling_minigpt4.light", "hub.export"),
    ("modeling_minigpt4.light", "hub.from_parts"),
    ("modeling_minigpt4.modeling_minigpt4", "modeling_minigpt4.chat"),
    ("processing.processing_minigpt4", "hub.export"),
    ("processing.processing_minigpt4", "processing.chat_templates"),
    ("processing.processing_minigpt4", "processing.for_model"),
    ("processing.processing_minigpt4", "processing.turns"),
}


@pytest.fixture(scope="module")
def graph():
    """{module: the modules of this package that it imports, anywhere in its file, but for type checkers}."""
    return {name: _imported(name, file, _files()) for name, file in _files().items()}


def test_every_module_has_a_room(graph):
    assert not [name for name in graph if name != "minigpt4" and _room(name) is None]


def test_rooms_import_down_only(graph):
    imported = {(name, other) for name in graph for other in graph[name] if "minigpt4" not in (name, other)}
    assert {(name, other) for name, other in imported if _room(name) < _room(other)} == _present(RUN_UP, graph)


def test_no_circles(graph):
    known = _present(CIRCLES, graph)
    assert not [(name, other) for name, other in known if other not in graph[name]], "fixed: take it out of CIRCLES"
    without = {name: {other for other in graph[name] if (name, other) not in known} for name in graph}
    graphlib.TopologicalSorter(without).prepare()  # raises CycleError, which names the modules of a circle


@pytest.mark.parametrize("kind", ["FULL_CLASSES", "LIGHT_CLASSES", "PROCESSOR_CLASSES", "IMAGE_PROCESSOR_CLASSES"])
def test_exported_files_import_only_each_other(kind):
    shipped = {file.resolve() for file in export._sources(getattr(export, kind))}
    names = {file.resolve(): name for name, file in _files().items()}
    found = {(names[file], other) for file in shipped for other in _imported(names[file], file, _files(), by_name=True)}
    found = {(name, other) for name, other in found if _files()[other].resolve() not in shipped}
    assert found == {edge for edge in NOT_SHIPPED if _files()[edge[0]].resolve() in shipped}


def test_what_a_space_and_an_endpoint_run_imports_nothing_of_this_package(tmp_path):
    (tmp_path / "app.py").write_text(export.space_app(), "utf-8")
    assert not _imported("hub.app", tmp_path / "app.py", _files(), by_name=True)
    assert not _imported("hub.handler", ROOT / "minigpt4" / "hub" / "handler.py", _files(), by_name=True)


def test_a_clone_has_each_folder_where_its_import_looks_for_it():
    places = {name.replace(".", "/"): folder for name, folder in SETUPTOOLS["package-dir"].items()}
    assert not [place for place, folder in places.items() if not (ROOT / place).samefile(ROOT / folder)]


def test_editors_see_the_names_that_load_lazily():
    tree = ast.parse(Path(minigpt4.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if _is_for_type_checkers(node))
    seen = {alias.name: statement.module for statement in block.body for alias in statement.names}
    assert seen == minigpt4._HOME and sorted(seen) == minigpt4.__all__


def _files():
    """{module, without the leading "minigpt4.": its file}, of every package that pyproject.toml lists."""
    found = {}
    for package in SETUPTOOLS["packages"]:
        folder = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
        for file in folder.glob("*.py"):
            name = package if file.stem == "__init__" else f"{package}.{file.stem}"
            found[name.removeprefix("minigpt4.")] = file
    return found


def _present(edges, graph):
    return {(name, other) for name, other in edges if name in graph and other in graph}


def _room(name):
    """Its number, or None."""
    places = {prefix: number for number, room in enumerate(ROOMS) for prefix in room.split()}
    fitting = [prefix for prefix in places if f"{name}.".startswith(f"{prefix}.")]
    return places[max(fitting, key=len)] if fitting else None


def _imported(name, file, known, by_name=False):
    """The modules among `known` that a file imports; `by_name`: those of `import_module(".name", ...)`, too."""
    place = ["minigpt4", *(name.split(".") if name != "minigpt4" else [])]
    package = place if file.name == "__init__.py" else place[:-1]
    found = set()
    for node in _walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = (
                [*package[: len(package) - node.level + 1], *(node.module or "").split(".")] if node.level else [node.module]
            )
            found |= {".".join(filter(None, [*base, alias.name])) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif by_name and isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            found.add(resolve_name(node.args[0].value, ".".join(package)))
    # `from .module import name` gives the module, `from . import module` the module, too.
    modules = {_longest(path, known) for path in found if path.split(".")[0] == "minigpt4"}
    return modules - {None, name}


def _longest(path, known):
    """The module of a dotted path: "minigpt4.durable_files.write_json" -> "files"; `minigpt4` itself for its lazy names."""
    parts = path.split(".")
    names = [".".join(parts[1:end]) or "minigpt4" for end in range(len(parts), 0, -1)]
    return next((name for name in names if name in known), None)


def _walk(tree):
    """`ast.walk` without what only type checkers read."""
    yield tree
    for node in ast.iter_child_nodes(tree):
        if not _is_for_type_checkers(node):
            yield from _walk(node)


def _is_for_type_checkers(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
