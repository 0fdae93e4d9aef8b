"""Registration with anomalib. Checks that need a new Python process are combined in three processes."""

import ast
import contextlib
import importlib.abc
import io
import os
import site
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection
from importlib.metadata import distribution
from pathlib import Path

import pytest

import anomalib_aprilgan_plugin

LINE = Path(anomalib_aprilgan_plugin.__file__).with_name("anomalib_aprilgan.pth")
PLUGIN = anomalib_aprilgan_plugin.__name__
OURS = ("anomalib_aprilgan", PLUGIN)
SMALL = {"backbone": "ViT-S-16-alt", "pretrained": None, "image_size": 32, "layers": (2, 4), "adapter": None}


def in_new_process(check: Callable[[], None], **environment: str) -> set[str]:
    """Run a function of this file in a new process, and return the modules that Python loaded at its start."""
    code = (
        f"import sys; print(*sys.modules, flush=True); sys.path.append({str(Path(__file__).parent)!r}); "
        f"import test_plugin; test_plugin.{check.__name__}()"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.splitlines()[0].split())


class Hidden(importlib.abc.MetaPathFinder):
    """Makes modules impossible to import."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in self.names:
            msg = f"No module named {fullname!r}"
            raise ModuleNotFoundError(msg, name=fullname)


def start_again(hidden: Collection[str] = ()) -> None:
    """Unload anomalib and our modules, hide some modules, and run the .pth file like the start of Python."""
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry

    AcceleratorRegistry.pop("xpu", None)  # anomalib.engine adds it again
    StrategyRegistry.pop("xpu_single", None)
    for name in list(sys.modules):
        if name.partition(".")[0] in {"anomalib", *OURS}:
            del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, Hidden) and not is_ours(finder)]
    exec(LINE.read_text(encoding="utf-8"))  # noqa: S102  # like Python's site module
    sys.meta_path.insert(0, Hidden(*hidden))


def is_ours(finder_or_loader: object) -> bool:
    return type(finder_or_loader).__module__ == PLUGIN


def registration_warnings(statement: str) -> list[str]:
    """Run a statement, and return the warnings of this package."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(statement, {})  # noqa: S102  # an import below
    return [text for warning in caught if "anomalib works without" in (text := str(warning.message))]


# ---- Run in new processes -------------------------------------------------------------------------------------------


def check_registration() -> None:
    import torch  # noqa: F401

    loaded = [name for name in sys.modules if name.partition(".")[0] in {"anomalib", "anomalib_aprilgan", "lightning"}]
    assert not loaded, f"import torch has imported {loaded}"
    assert sum(map(is_ours, sys.meta_path)) == 1, "one finder waits for anomalib"

    import anomalib.models
    from anomalib.models import get_model, list_models

    assert not any(map(is_ours, sys.meta_path)), "the finder stays"
    assert not is_ours(anomalib.models.__spec__.loader), "the loader stays"
    assert not is_ours(anomalib.models.__loader__), "the loader stays"
    assert "april_gan" in list_models()
    for name in ("april_gan", "AprilGan"):
        assert type(get_model(name, **SMALL)).__name__ == "AprilGan", name
    for path in ("AprilGan", "anomalib.models.AprilGan", "anomalib_aprilgan.AprilGan"):
        model = get_model({"class_path": path, "init_args": SMALL})
        assert type(model).__module__ == "anomalib_aprilgan.lightning_model", path
    assert "other_models" not in sys.modules, "the entry point of another package was loaded"
    check_the_command_line()
    check_the_order_of_imports()


def check_the_command_line() -> None:
    from anomalib.cli.cli import AnomalibCLI

    for verb in ("fit", "validate", "test", "train", "predict", "export"):
        error = io.StringIO()
        with contextlib.redirect_stderr(error), contextlib.suppress(SystemExit):
            AnomalibCLI([verb, "--model", "AprilGan", "--model.k_shot", "many", "--data", "AuxiliaryDataModule"])
        assert "k_shot" in error.getvalue(), (
            verb,
            error.getvalue(),
        )  # the names are valid, the argument is not


def check_the_order_of_imports() -> None:
    for first in (
        "import anomalib.models",
        "import anomalib.data",
        "import anomalib.engine",
        "from anomalib_aprilgan.lightning_model import AprilGan",
        "from anomalib_aprilgan.datamodule import AuxiliaryDataModule",
        "from anomalib_aprilgan import AprilGan",
        "from anomalib_aprilgan import AuxiliaryDataModule",
    ):
        start_again()
        faults = registration_warnings(f"{first}\nimport anomalib.models")
        assert not faults, (first, faults)
        models, data, ours = (sys.modules[name] for name in ("anomalib.models", "anomalib.data", "anomalib_aprilgan"))
        assert models.AprilGan is ours.AprilGan, first
        assert data.AuxiliaryDataModule is ours.AuxiliaryDataModule, first
        assert "anomalib_aprilgan" in models.ALLOWED_MODULES, first
        assert "april_gan" in models.list_models(), first


def check_the_switch() -> None:
    from anomalib.models import list_models

    assert "april_gan" not in list_models()
    assert "anomalib_aprilgan" not in sys.modules
    from anomalib_aprilgan import AprilGan  # noqa: F401

    assert "april_gan" in list_models(), "an explicit import registers"


def check_a_broken_package() -> None:
    sys.meta_path.insert(0, Hidden("anomalib"))
    import torch

    assert torch.ones(1).item() == 1, "torch works without anomalib"
    both = {"AprilGan", "AuxiliaryDataModule"}
    for hidden, missing in (
        (["anomalib_aprilgan"], both),
        (["anomalib_aprilgan.method.clip", "anomalib_aprilgan.datamodule"], both),
        (["anomalib_aprilgan.export.export"], {"AprilGan"}),
    ):
        start_again(hidden)
        check_that_errors_of_warnings_do_not_matter(hidden)
        start_again(hidden)
        faults = registration_warnings("import anomalib.models")
        models, data = sys.modules["anomalib.models"], sys.modules["anomalib.data"]
        assert models.Patchcore.__name__ == "Patchcore"
        assert {name for name in both if not hasattr(models, name) and not hasattr(data, name)} == missing, hidden
        assert len(faults) == len(missing), faults
        for name in missing:
            (fault,) = (fault for fault in faults if f"'{name}'" in fault)
            assert "ANOMALIB_APRILGAN_AUTOLOAD=0" in fault
            assert hidden[-1] in fault or hidden[0] in fault


def check_that_errors_of_warnings_do_not_matter(hidden: list[str]) -> None:
    """As with ``python -W error``."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as printed:
        warnings.simplefilter("error", UserWarning)
        exec("import anomalib.models")  # noqa: S102
    assert "anomalib works without" in printed.getvalue(), hidden


# ---- Tests ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_package(tmp_path: Path) -> str:
    """Make a folder for Python's path with another package that registers a model with anomalib."""
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[anomalib.models]\nOther = other_models:Other\n", encoding="utf-8")
    (tmp_path / "other_models.py").write_text("class Other:\n    pass\n", encoding="utf-8")
    return os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_registration_and_its_switch(other_package: str) -> None:
    """The hook loads no module at the start of Python that Python does not load itself."""
    loaded = in_new_process(check_registration, PYTHONPATH=other_package)
    without = in_new_process(check_the_switch, ANOMALIB_APRILGAN_AUTOLOAD="0")
    assert PLUGIN in loaded
    assert loaded == without
    assert not {"typing", "importlib.abc", "importlib.metadata"} & loaded


def test_a_broken_package_breaks_neither_torch_nor_anomalib() -> None:
    in_new_process(check_a_broken_package)


def test_the_hook_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(anomalib_aprilgan_plugin.__file__).read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names


def test_the_entry_points_name_the_registered_classes() -> None:
    announced = {
        (entry_point.group, entry_point.name, entry_point.value)
        for entry_point in distribution("anomalib-aprilgan").entry_points
        if entry_point.group.startswith("anomalib.")
    }
    assert announced == {(host, name, f"{module}:{name}") for host, name, module in anomalib_aprilgan_plugin.CLASSES}


def test_installing_the_hook_twice_adds_one_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delenv(anomalib_aprilgan_plugin.SWITCH, raising=False)
    before = len(sys.meta_path)
    anomalib_aprilgan_plugin.install()
    anomalib_aprilgan_plugin.install()
    assert len(sys.meta_path) == before + 1


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (None, f"No module named '{PLUGIN}'"),
        ("def install():\n    pass", ""),
        ("def broken(:", "SyntaxError"),
        ("import absent_module", "absent_module"),
        ("from sys import absent_name", "absent_name"),
        ("def install():\n    raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("def install():\n    raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("", "install"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Odd(BaseException):\n    pass\nraise Odd('odd')", "Odd: odd"),
    ],
)
def test_python_starts_with_a_damaged_hook(
    source: str | None, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any error is one line on stderr."""
    line = LINE.read_text(encoding="utf-8")
    assert line.startswith("import ")  # other lines are paths for Python
    assert line.count("\n") == 1
    (tmp_path / LINE.name).write_text(line, encoding="utf-8")
    if source is not None:
        (tmp_path / f"{PLUGIN}.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, f"{PLUGIN}.py").exists()])
    monkeypatch.delitem(sys.modules, PLUGIN)
    site.addsitedir(str(tmp_path))  # like the start of Python
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    output, error = capsys.readouterr()
    assert not output
    assert fault in error
    assert error.count("\n") == bool(fault)
    assert error.startswith("anomalib-aprilgan is not registered with anomalib" if fault else "")
