"""Imports go one way: equations at the bottom, anomalib above them, the command line on top."""

import ast
from pathlib import Path

import pytest

import anomalib_aprilgan

PACKAGE = Path(anomalib_aprilgan.__file__).parent

LAYERS = [
    {"cli"},
    {"demo.demonstration", "demo.pretraining", "comparison.compare"},
    {"demo.experiment", "demo.page", "demo.pairs", "comparison.job"},
    {"comparison.callbacks", "comparison.environment", "comparison.authors_protocol"},
    {"comparison.grid"},
    # The report knows the table of results alone.
    {"comparison.report"},
    {"comparison.summaries", "comparison.gallery", "comparison.plots"},
    {"comparison.tables"},
    {"comparison.results", "comparison.published_figures"},
    {"comparison.folder"},
    {"lightning_model", "quiet_engine"},
    {"export", "products"},
    {"quantization", "preparation"},
    {"post_processing", "pre_processing", "references", "seeding", "datamodule", "checkpoint_io"},
    {"auxiliary_dataset"},
    {"torch_model"},
    {"published"},
    {"clip", "adapters", "memory_bank", "scoring", "losses", "prompts"},
    {"towers"},
    {"weight_files", "embedded", "resizing", "quiet"},
    {"double_single"},
    # The generator of pictures knows nothing of the method.
    {"demo.findings", "demo.sample_data"},
    {"demo.scenes"},
    {"demo.defects", "demo.photographs", "demo.inventions"},
    {"demo.surfaces", "demo.objects"},
    {"demo.canvas"},
]
"""From top to bottom; a file may import those below its own layer."""

BOXES = {"clip", "adapters", "memory_bank", "scoring", "losses", "prompts"}
GENERATOR = set.union(*LAYERS[-5:])

REPORT = set.union(*LAYERS[5:10])

SUBPACKAGES = ("comparison", "demo")

HOST = {"anomalib", "lightning"}
KNOW_THE_HOST = set.union(*LAYERS[1 : LAYERS.index({"torch_model"})])


def name_of(path: Path) -> str:
    """A file's name as a module of the package."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path: Path) -> set[str]:
    """Every imported module, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in {f"{PACKAGE.name}.{name}" for name in SUBPACKAGES}:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def test_every_file_has_its_layer() -> None:
    assert {name_of(path) for path in FILES} == set.union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    depth = next(depth for depth, layer in enumerate(LAYERS) if name_of(path) in layer)
    below = set().union(*LAYERS[depth + 1 :])
    ours = {name.partition(".")[2] for name in imports_of(path) if name.startswith("anomalib_aprilgan.")}
    assert ours <= below


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_one_file_imports_open_clip(path: Path) -> None:
    assert ("open_clip" in {name.partition(".")[0] for name in imports_of(path)}) == (path.stem == "towers")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_upper_files_know_the_host(path: Path) -> None:
    """The plain model needs anomalib for one thing: the type of its prediction."""
    host = {name for name in imports_of(path) if name.partition(".")[0] in HOST}
    if path.stem == "torch_model":
        assert host == {"anomalib.data"}
    else:
        assert not host or name_of(path) in KNOW_THE_HOST


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_boxes_of_the_method_do_not_import_each_other(path: Path) -> None:
    if name_of(path) in BOXES:
        ours = {name for name in imports_of(path) if name.startswith("anomalib_aprilgan")}
        assert ours <= {"anomalib_aprilgan.towers", "anomalib_aprilgan.weight_files"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_generator_stands_alone(path: Path) -> None:
    if name_of(path) in GENERATOR:
        ours = {name for name in imports_of(path) if name.startswith("anomalib_aprilgan.")}
        assert ours <= {f"anomalib_aprilgan.{name}" for name in GENERATOR}
        assert not {"torch", "open_clip"} & {name.partition(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_report_needs_nothing_but_the_table(path: Path) -> None:
    if name_of(path) in REPORT:
        ours = {name.partition(".")[2] for name in imports_of(path) if name.startswith("anomalib_aprilgan.")}
        assert ours <= REPORT
        assert not {"torch", "open_clip", "lightning"} & {name.partition(".")[0] for name in imports_of(path)}
