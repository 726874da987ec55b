"""The house keeps its shape: which way imports point, what no part may touch, where deviations live."""

import ast
import re
import sys
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wdstransport"

# cli -> faces -> net -> protocol -> wire; net -> content, observe. A part may always import itself.
MAY_IMPORT = {
    "errors": set(),
    "wire": set(),
    "protocol": {"wire"},
    "content": {"errors"},
    "observe": {"errors"},
    "net": {"protocol", "wire", "content", "observe", "errors"},
    "faces": {"net", "protocol", "wire", "content", "observe", "errors"},
    "cli": {"public"},
}
OUTSIDE_WORLD = {"trio", "socket", "select", "selectors", "os", "time", "threading", "logging", "asyncio"}
FORBIDDEN = {
    "wire": OUTSIDE_WORLD | {"random"},
    "protocol": OUTSIDE_WORLD | {"construct", "secrets"},
    "content": {"trio", "socket", "construct"},
    "observe": {"trio", "socket", "construct"},
    "net": {"construct"},
    "faces": {"construct"},
    "errors": {"trio", "socket", "construct"},
}


def part_of(dotted):
    """The part of the house that a module of ours belongs to."""
    names = dotted.split(".")
    if names[0] == "cli":
        return "cli"
    if len(names) > 1 and names[1] in ("wire", "protocol", "content", "observe", "net", "errors"):
        return names[1]
    return "faces"


def modules():
    """Every module of the package and the command line, by dotted name."""
    found = {}
    for path in sorted(chain(PACKAGE.rglob("*.py"), (ROOT / "cli").rglob("*.py"))):
        names = list(path.relative_to(ROOT).with_suffix("").parts)
        if names[-1] == "__init__":
            names.pop()
        found[".".join(names)] = path
    return found


MODULES = modules()


def every_module(*parts, but=()):
    """Runs a test for each module of some parts, or of all but some."""
    chosen = [
        dotted for dotted in MODULES if (not parts or part_of(dotted) in parts) and part_of(dotted) not in but
    ]
    assert chosen
    return pytest.mark.parametrize("dotted", chosen)


def tree_of(dotted):
    return ast.parse(MODULES[dotted].read_text(), str(MODULES[dotted]))


def only_for_types(tree):
    """The nodes under `if TYPE_CHECKING`."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imports_of(dotted, *, at_run_time=False):
    """(module, name or None, line) of every import, wherever in the module it stands."""
    tree = tree_of(dotted)
    skipped = only_for_types(tree) if at_run_time else set()
    is_package = MODULES[dotted].name == "__init__.py"
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = dotted.split(".")[: None if is_package and node.level == 1 else -node.level]
                if is_package and node.level > 1:
                    parents = dotted.split(".")[: 1 - node.level]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield base, alias.name, node.lineno


def ours(module, name):
    """The dotted name of a module of ours that an import reaches, or None."""
    if module.split(".")[0] not in ("wdstransport", "cli"):
        return None
    if name is not None and f"{module}.{name}" in MODULES:
        return f"{module}.{name}"
    return module


def public_names():
    """What `wdstransport` re-exports: names in __all__, or imported as themselves."""
    names = set()
    for node in ast.walk(tree_of("wdstransport")):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        if (
            isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets)
            and isinstance(node.value, ast.List)
        ):
            names |= {element.value for element in node.value.elts}
    return names


def test_there_is_a_house_to_look_at():
    assert {part_of(dotted) for dotted in MODULES} == set(MAY_IMPORT)


@every_module(but=("cli",))  # what it may import has a test of its own
def test_imports_point_the_right_way(dotted):
    part = part_of(dotted)
    wrong = []
    for module, name, line in imports_of(dotted):
        target = ours(module, name)
        if target is None:
            continue
        other = part_of(target)
        if other != part and other not in MAY_IMPORT[part]:
            wrong.append(f"{MODULES[dotted]}:{line}: {part} imports {target}")
    assert not wrong, "\n".join(wrong)


@every_module("cli")
def test_command_line_imports_only_public_names(dotted):
    public = public_names()
    tree = tree_of(dotted)
    wrong = []
    for module, name, line in imports_of(dotted):
        if module.split(".")[0] != "wdstransport":
            continue
        if module != "wdstransport" or (name is not None and name not in public):
            wrong.append(f"{MODULES[dotted]}:{line}: {module}.{name}")
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "wdstransport"
            and node.attr not in public
        ):
            wrong.append(f"{MODULES[dotted]}:{node.lineno}: wdstransport.{node.attr}")
    assert not wrong, "\n".join(wrong)


@every_module()
def test_nobody_imports_what_is_not_for_them(dotted):
    forbidden = FORBIDDEN.get(part_of(dotted), set())
    wrong = [
        f"{MODULES[dotted]}:{line}: {module}"
        for module, _, line in imports_of(dotted)
        if module.split(".")[0] in forbidden
    ]
    assert not wrong, "\n".join(wrong)


@every_module()
def test_only_wire_imports_construct_and_only_net_and_the_faces_sockets(dotted):
    part = part_of(dotted)
    roots = {module.split(".")[0] for module, _, _ in imports_of(dotted)}
    if part != "wire":
        assert "construct" not in roots
    if part not in ("net", "faces", "cli"):
        assert not roots & {"trio", "socket"}


@every_module("wire", "protocol")
def test_cores_take_chance_and_imports_from_nobody_but_their_caller(dotted):
    wrong = []
    for node in ast.walk(tree_of(dotted)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "random" and node.attr != "Random":
                wrong.append(f"{MODULES[dotted]}:{node.lineno}: random.{node.attr}")
            if (node.value.id, node.attr) in {("np", "random"), ("numpy", "random")}:
                wrong.append(f"{MODULES[dotted]}:{node.lineno}: numpy.random")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"__import__", "importlib.import_module", "open", "print", "input", "random.Random"}:
                wrong.append(f"{MODULES[dotted]}:{node.lineno}: {called}()")
    for module, name, line in imports_of(dotted):
        if module == "importlib" or (module == "random" and name is not None):
            wrong.append(f"{MODULES[dotted]}:{line}: {module}.{name}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_in_a_circle():
    edges = {
        dotted: {
            target
            for module, name, _ in imports_of(dotted, at_run_time=True)
            if (target := ours(module, name)) in MODULES and target != dotted
        }
        for dotted in MODULES
    }
    # A package's __init__ is no part of a circle unless somebody imports a name from it.
    done, path = set(), []

    def visit(dotted):
        if dotted in done:
            return
        assert dotted not in path, " -> ".join([*path[path.index(dotted) :], dotted])
        path.append(dotted)
        for target in sorted(edges[dotted]):
            visit(target)
        path.pop()
        done.add(dotted)

    for dotted in MODULES:
        visit(dotted)


def test_nothing_but_declared_dependencies_is_imported():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[(.*?)\]", text, re.MULTILINE | re.DOTALL).group(1)
    declared = {re.match(r"[\w-]+", entry).group() for entry in re.findall(r'"(.+?)"', listed)}
    roots = {module.split(".")[0] for dotted in MODULES for module, _, _ in imports_of(dotted)}
    foreign = roots - set(sys.stdlib_module_names) - {"wdstransport", "cli"}
    assert foreign <= declared, foreign - declared


# ---------------------------------------------------------------------- deviations


def rows_of_the_table():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    return [int(number) for number in re.findall(r"^\| *(\d+) *\|", text, re.MULTILINE)]


def cited_deviations():
    """number -> the places in the code that cite it; also "deviations 4 and 5" and "deviations 4, 5"."""
    found = {}
    for path in chain(PACKAGE.rglob("*.py"), (ROOT / "cli").rglob("*.py")):
        text = path.read_text()
        for match in re.finditer(r"\bdeviations?\s+(\d+(?:(?:\s*,\s*|\s+and\s+|\s+or\s+|-)\d+)*)", text):
            place = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
            for number in re.findall(r"\d+", match.group(1)):
                found.setdefault(int(number), []).append(place)
    return found


def test_every_cited_deviation_has_its_row():
    rows = set(rows_of_the_table())
    cited = cited_deviations()
    assert len(cited) > 40
    missing = {number: places for number, places in sorted(cited.items()) if number not in rows}
    assert not missing


def test_every_row_of_the_deviations_is_cited_in_the_code():
    assert not sorted(set(rows_of_the_table()) - set(cited_deviations()))


def test_deviations_are_numbered_once_and_without_gaps():
    rows = rows_of_the_table()
    assert rows == list(range(1, len(rows) + 1))
