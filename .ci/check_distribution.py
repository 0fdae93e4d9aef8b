"""Check the built wheel and sdist: they hold what they should, nothing else, and nothing large.

python .ci/check_distribution.py FOLDER
"""

import sys
import tarfile
import zipfile
from pathlib import Path

MAX_BYTES = 20e6
"""Size of the largest file, the archives included. The weights of ViT-builtin are by far the largest part."""

PACKAGE = ("anomalib_aprilgan", "anomalib_aprilgan_plugin.py", "anomalib_aprilgan.pth")
NEEDED = {
    "whl": (
        *PACKAGE[1:],
        "anomalib_aprilgan/py.typed",
        "anomalib_aprilgan/demo/page.html.jinja",
        "anomalib_aprilgan/comparison/report.md.jinja",
        "anomalib_aprilgan/files/weights/ViT-builtin.json",
        "anomalib_aprilgan/files/weights/ViT-builtin.safetensors",
        "anomalib_aprilgan/files/weights/adapters.safetensors",
        "anomalib_aprilgan/pages/style.css",
    ),
    "gz": (
        "src/anomalib_aprilgan.pth",
        "src/anomalib_aprilgan/files/weights/ViT-builtin.safetensors",
        "tests/golden/golden.pt",
        "configs/mvtec_zero_shot.yaml",
        "docs/index.md",
        "examples/first_run.sh",
        ".ci/run",
        *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "mkdocs.yml"),
        "pyproject.toml",
    ),
}
REFUSED = (".pyc", ".ckpt", ".log", ".csv", "/.venv", "/site/", "/results/", "/datasets/", "_cache/", ".egg-info/")


def files_of(archive: Path) -> dict[str, int]:
    """Return names and sizes of the files in an archive; without the folder that holds all of an sdist."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {entry.filename: entry.file_size for entry in wheel.infolist() if not entry.is_dir()}
    with tarfile.open(archive) as sdist:
        return {entry.name.partition("/")[2]: entry.size for entry in sdist.getmembers() if entry.isfile()}


def problems_of(archive: Path) -> list[str]:
    """List what is wrong with an archive."""
    files = files_of(archive)
    problems = [f"lacks {name}" for name in NEEDED[archive.suffix[1:]] if name not in files]
    problems += [f"holds {name}" for name in files if any(part in f"/{name}" for part in REFUSED)]
    problems += [f"holds {name} of {size / 1e6:.0f} MB" for name, size in files.items() if size > MAX_BYTES]
    if archive.suffix == ".whl":
        problems += [
            f"holds {name}" for name in files if name.split("/")[0] not in PACKAGE and ".dist-info/" not in name
        ]
    if archive.stat().st_size > MAX_BYTES:
        problems.append(f"has {archive.stat().st_size / 1e6:.0f} MB")
    return problems


def main(folder: Path) -> None:
    """Check one wheel and one sdist."""
    archives = sorted(path for path in folder.iterdir() if path.suffix in {".whl", ".gz"})
    problems = [f"{archive.name} {problem}." for archive in archives for problem in problems_of(archive)]
    if [archive.suffix for archive in archives] != [".whl", ".gz"]:
        problems.append(f"Expected one wheel and one sdist in {folder}, but got {[path.name for path in archives]}.")
    for archive in archives:
        print(f"{archive.name}: {len(files_of(archive))} files, {archive.stat().st_size / 1e6:.1f} MB")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
