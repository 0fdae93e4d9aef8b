"""Discovery by anomalib, through fresh processes that import nothing of ours."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import anomalib_aprilgan_plugin

SMALL = {
    "backbone": "ViT-S-16-alt",
    "pretrained": None,
    "image_size": 32,
    "layers": (2, 4),
    "adapter": None,
}


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def succeed(code: str, **environment: str) -> str:
    process = run(code, **environment)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_entrance_works_in_a_fresh_process() -> None:
    code = f"""
from anomalib.models import get_model, list_models
assert "april_gan" in list_models()
for name in ("april_gan", "AprilGan"):
    assert type(get_model(name, **{SMALL})).__name__ == "AprilGan"
for path in ("AprilGan", "anomalib.models.AprilGan", "anomalib_aprilgan.AprilGan"):
    model = get_model({{"class_path": path, "init_args": {SMALL}}})
    assert type(model).__module__ == "anomalib_aprilgan.lightning_model"
from anomalib.data import AuxiliaryDataModule
print("fine")
"""
    assert succeed(code).strip() == "fine"


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        "from anomalib_aprilgan.lightning_model import AprilGan",
        "from anomalib_aprilgan import AuxiliaryDataModule",
        "import anomalib.engine",
    ],
)
def test_the_order_of_imports_does_not_matter(first: str) -> None:
    code = f"{first}\nimport anomalib.models as m\nprint(m.AprilGan.__name__, 'anomalib_aprilgan' in m.ALLOWED_MODULES)"
    process = run(code)
    assert process.stdout.split() == ["AprilGan", "True"], process.stderr
    assert "could not be loaded" not in process.stderr


def test_the_command_line_knows_the_short_names_under_every_verb() -> None:
    code = """
import contextlib, io
from anomalib.cli.cli import AnomalibCLI
for verb in ("fit", "validate", "test", "train", "predict", "export"):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.suppress(SystemExit):
        AnomalibCLI([verb, "--model", "AprilGan", "--model.k_shot", "many", "--data", "AuxiliaryDataModule"])
    assert "k_shot" in error.getvalue(), (verb, error.getvalue())  # our argument is wrong, not the name
print("fine")
"""
    assert succeed(code).strip() == "fine"


def test_importing_torch_imports_nothing_of_anomalib_or_of_ours() -> None:
    code = """
import sys, torch
print([name for name in sys.modules if name.partition(".")[0] in ("anomalib", "anomalib_aprilgan", "lightning")])
"""
    assert succeed(code).strip() == "[]"


def test_the_hook_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(anomalib_aprilgan_plugin.__file__).read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert {module.partition(".")[0] for module in modules} <= sys.stdlib_module_names
    # At the start of Python it brings in nothing that Python has not loaded anyway.
    loaded = succeed("import sys; print(*sys.modules)").split()
    without = succeed("import sys; print(*sys.modules)", ANOMALIB_APRILGAN_AUTOLOAD="0").split()
    assert "anomalib_aprilgan_plugin" in loaded
    assert set(loaded) == set(without)
    assert not {"typing", "importlib.abc", "importlib.metadata"} & set(loaded)


def test_the_start_of_python_keeps_quiet_where_the_hook_is_gone() -> None:
    line = (Path(anomalib_aprilgan_plugin.__file__).parent / "anomalib_aprilgan.pth").read_text(encoding="utf-8")
    assert line.startswith("import ")  # else Python would take it for a path
    assert line.count("\n") == 1
    process = subprocess.run([sys.executable, "-S", "-c", line], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_the_hook_leaves_nothing_behind() -> None:
    for first in ("import torch, anomalib.models", "import anomalib.models"):
        code = f"""
import sys
{first}
import anomalib, anomalib_aprilgan_plugin as plugin
assert anomalib.models.AprilGan
assert not [finder for finder in sys.meta_path if type(finder).__module__ == plugin.__name__]
assert type(anomalib.models.__spec__.loader).__module__ != plugin.__name__
assert type(anomalib.models.__loader__).__module__ != plugin.__name__
assert type(anomalib).__module__ != plugin.__name__
"""
        succeed(code)


def test_installing_twice_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.delitem(sys.modules, anomalib_aprilgan_plugin.HOST, raising=False)
    monkeypatch.delenv(anomalib_aprilgan_plugin.SWITCH, raising=False)
    before = len(sys.meta_path)
    anomalib_aprilgan_plugin.install()
    anomalib_aprilgan_plugin.install()
    assert len(sys.meta_path) == before + 1


def test_the_switch() -> None:
    code = "from anomalib.models import list_models; print('april_gan' in list_models())"
    assert succeed(code, ANOMALIB_APRILGAN_AUTOLOAD="0").strip() == "False"
    explicit = f"from anomalib_aprilgan import AprilGan\n{code}"
    assert succeed(explicit, ANOMALIB_APRILGAN_AUTOLOAD="0").strip() == "True"


BLOCK = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize(
    "missing",
    [["anomalib_aprilgan"], ["anomalib_aprilgan.method.clip", "anomalib_aprilgan.datamodule"]],
)
def test_a_broken_package_breaks_neither_torch_nor_anomalib(missing: list[str]) -> None:
    code = BLOCK.format(names=missing) + "import torch, anomalib.models\nprint(anomalib.models.Patchcore.__name__)"
    process = run(code)
    assert process.stdout.strip() == "Patchcore", process.stderr
    assert "'AprilGan'" in process.stderr
    assert "could not be loaded" in process.stderr
    assert "ANOMALIB_APRILGAN_AUTOLOAD=0" in process.stderr


def test_torch_works_where_anomalib_is_missing() -> None:
    assert succeed(BLOCK.format(names=["anomalib"]) + "import torch; print(torch.ones(1).item())").strip() == "1.0"


def test_plugins_of_others_are_found_and_their_faults_are_theirs(tmp_path: Path) -> None:
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[anomalib.models]\nOther = other_models:Other\nFaulty = other_models:Absent\n", encoding="utf-8"
    )
    (tmp_path / "other_models.py").write_text(
        "from anomalib.models.components import AnomalibModule\nclass Other(AnomalibModule):\n    pass\n",
        encoding="utf-8",
    )
    code = "import anomalib.models as m; print(sorted(m.list_models() & {'april_gan', 'other'}), hasattr(m, 'Faulty'))"
    process = run(code, PYTHONPATH=str(tmp_path))
    assert process.stdout.strip() == "['april_gan', 'other'] False", process.stderr
    assert "'Faulty'" in process.stderr
