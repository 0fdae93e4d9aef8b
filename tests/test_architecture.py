"""Layers of the package and the direction of imports, from the command line down to method and files."""

import ast
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import anomalib_aprilgan
import anomalib_aprilgan_plugin

PACKAGE = Path(anomalib_aprilgan.__file__).parent

LAYOUT = """
cli
pretraining | diagnosis | verification
demo | comparison
pages
lightning_model
datamodule | export
integration
torch_model coreset
method
files
"""
"""Layers from top to bottom. A name is a module, or a folder with all its modules. A module may import modules of lower
lines, and modules of its own line between the same bars."""

BOXES = [
    (depth, frozenset(box.split())) for depth, line in enumerate(LAYOUT.strip().splitlines()) for box in line.split("|")
]

WITHOUT_MODELS = ("demo.drawing.scenes", "demo.sample_data", "pretraining.pair_files", "comparison.report")
"""Modules that import torch, Lightning and open_clip neither themselves nor by other modules of the package."""


def name_of(path: Path) -> str:
    """Return the module name of a file within the package; for `__init__.py`, the name of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name: path for path in sorted(PACKAGE.rglob("*.py")) if (name := name_of(path))}
"""All modules except the `__init__.py` of the package, which contains the public names."""


def imports_of(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, also within functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in submodules if name.removeprefix(f"{PACKAGE.name}.") in FILES}
            names.update(submodules or {node.module})
    return names


IMPORTS = {module: imports_of(path) for module, path in FILES.items()}
OURS = {
    module: {name.partition(".")[2] for name in names if name.startswith(f"{PACKAGE.name}.")}
    for module, names in IMPORTS.items()
}


def boxes_of(module: str) -> list[tuple[int, frozenset[str]]]:
    """Return depth and names of the layers that contain a module."""
    return [
        (depth, box) for depth, box in BOXES if any(module == name or module.startswith(f"{name}.") for name in box)
    ]


def importing(module: str, packages: set[str]) -> set[str]:
    """Return the modules of these packages that a module imports."""
    return {name for name in IMPORTS[module] if name.partition(".")[0] in packages}


def with_dependencies(module: str) -> set[str]:
    """Return a module and all modules of the package that it imports, directly or indirectly."""
    found, left = set(), {module}
    while left:
        found.add(one := left.pop())
        left |= OURS[one] - found
    return found


def test_each_module_is_in_exactly_one_layer() -> None:
    places = {module: boxes_of(module) for module in FILES}
    assert not {module: found for module, found in places.items() if len(found) != 1}
    assert {name for _, box in BOXES for name in box} == {
        name for module, ((_, box),) in places.items() for name in box if f"{module}.".startswith(f"{name}.")
    }, "names without a module"


def test_imports_point_downwards() -> None:
    wrong = []
    for module, ours in OURS.items():
        ((depth, box),) = boxes_of(module)
        for imported in ours:
            ((imported_depth, imported_box),) = boxes_of(imported)
            if box != imported_box and depth >= imported_depth:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_only_one_file_imports_open_clip() -> None:
    assert [module for module in FILES if importing(module, {"open_clip"})] == ["method.pretrained", "method.towers"]


def test_the_method_does_not_import_anomalib() -> None:
    """torch_model imports only the type of its prediction from anomalib."""
    ((depth, _),) = boxes_of("torch_model")
    below = [module for module in FILES if boxes_of(module)[0][0] > depth]
    assert {"method.towers", "method.prompts", "files.published"} < set(below)
    assert not {module: found for module in below if (found := importing(module, {"anomalib", "lightning"}))}
    assert importing("torch_model", {"anomalib", "lightning"}) == {"anomalib.data"}


def test_the_parts_of_the_method_do_not_import_each_other() -> None:
    boxes = {f"method.{name}" for name in ("adapters", "memory_bank", "scoring", "windows", "losses", "prompts")}
    assert not {box: OURS[box] for box in boxes if OURS[box]}


def test_the_drawing_imports_nothing_else_of_the_package() -> None:
    drawing = [module for module in FILES if f"{module}.".startswith("demo.drawing.")]
    assert "demo.drawing.scenes" in drawing
    assert not {module: found for module in drawing if (found := OURS[module] - set(drawing))}


def test_drawing_and_reports_do_not_import_torch() -> None:
    heavy = {"torch", "lightning", "open_clip"}
    for start in WITHOUT_MODELS:
        assert len(with_dependencies(start)) > 1
        found = {module: importing(module, heavy) for module in with_dependencies(start)}
        assert not {module: names for module, names in found.items() if names}, start


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 knows the modules of some distributions only")
def test_the_imported_packages_are_the_declared_dependencies() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    modules = set.union(imports_of(Path(anomalib_aprilgan_plugin.__file__)), *IMPORTS.values())
    names = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    names -= {PACKAGE.name, anomalib_aprilgan_plugin.__name__}
    names -= {"nncf", "onnx", "openvino", "distributed"}  # of the extras: the first three by anomalib[openvino]
    distributions = packages_distributions()
    assert {canonicalize_name(owner) for name in names for owner in distributions[name]} == declared


def test_texts_are_read_and_written_as_utf_8() -> None:
    """Windows has another default."""
    root, unspecified = Path(__file__).parents[1], []
    for path in (
        path for folder in ("src", "tests", "examples", "docs", ".ci") for path in (root / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_text = node.func.attr == "write_text" or (node.func.attr == "read_text" and not node.args)
                if is_text and "encoding" not in {keyword.arg for keyword in node.keywords}:
                    unspecified.append(f"{path.name}:{node.lineno}")
    assert not unspecified


def test_the_package_starts_no_other_program() -> None:
    """For instance git, which would run the hooks of the repository that the user happens to stand in."""
    assert not {module: names for module in FILES if (names := importing(module, {"subprocess", "pty", "git"}))}
    calls = ("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn")
    assert not [
        module for module, path in FILES.items() if any(call in path.read_text(encoding="utf-8") for call in calls)
    ]
