"""The documentation can be built, its links are valid, and its facts agree with code and configuration."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

import open_clip
import pytest
from anomalib.models import list_models
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import anomalib_aprilgan
from anomalib_aprilgan import AprilGan
from anomalib_aprilgan.comparison.published_figures import CATEGORY_FIGURES, MEAN_FIGURES, PUBLISHED_METRICS
from anomalib_aprilgan.method.architecture import Architecture

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "anomalib_aprilgan"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}


def section(page: str, heading: str) -> str:
    """Return the text below a heading of a page."""
    return PAGES[page].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


# ---- The site -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as the README says. Links and anchors that lead nowhere are errors."""
    pytest.importorskip("mkdocstrings", reason="needs the extra `docs` and Python 3.11 or newer")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    assert {path.stem for path in site.glob("*.html")} == {path.stem for path in DOCS.glob("*.md")} | {"404"}
    assert not list(site.rglob("*.py"))


def test_the_site_loads_nothing_from_other_servers(site: Path) -> None:
    for page in site.glob("*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", page.read_text(encoding="utf-8"))
        assert tags
        assert not [tag for tag in tags if re.search(r"(?:src|href)=\"?(?:https?:)?//", tag)], page.name


def test_the_reference_shows_all_public_classes_without_unresolved_markup(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in set(anomalib_aprilgan.__all__) - {"__version__"}:
        assert f'id="anomalib_aprilgan.{name}"' in page
    assert re.findall(r":(?:class|meth|attr|func|mod):", page) == []
    assert "<blockquote>" not in page, "an example needs the heading `Examples:`"


def test_the_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGES["README.md"])
    assert {f"docs/{name}" for name in PAGES if name not in {"README.md", "index.md"}} <= set(links)
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


# ---- Facts ----------------------------------------------------------------------------------------------------------


def test_every_named_file_exists() -> None:
    text = "\n".join(PAGES.values())
    for path in re.findall(r"(?:configs|docs|examples|src|tests)/[\w./-]+\w", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`([\w/]+\.py)`", PAGES["design.md"]):
        assert any(file.match(path) for folder in ("src", "tests") for file in (ROOT / folder).rglob("*.py")), path
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_design_names_each_part_of_the_package() -> None:
    parts = {path.name for path in PACKAGE.iterdir() if path.name[0] not in "_." and path.name != "py.typed"}
    first_column = "".join(re.findall(r"^\| ([^|]+) \|", section("design.md", "Layout"), flags=re.MULTILINE))
    assert {name.rstrip("/") for name in re.findall(r"`([\w./]+)`", first_column)} - {"src/anomalib_aprilgan"} == parts


def test_the_figure_is_what_the_script_draws(tmp_path: Path) -> None:
    figure = DOCS / "method.svg"
    subprocess.run([sys.executable, DOCS / "draw_method.py", tmp_path / "method.svg"], check=True)
    assert (tmp_path / "method.svg").read_bytes() == figure.read_bytes()
    files = set(re.findall(r">([\w/]+\.py)<", figure.read_text(encoding="utf-8")))
    assert len(files) == 9
    for file in files:
        assert (PACKAGE / file).is_file(), file


def test_the_supported_versions_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    allowed = {("python", ""): SpecifierSet(project["requires-python"])}
    for extra, requirements in groups.items():
        for requirement in map(Requirement, requirements):
            allowed[requirement.name, extra] = requirement.specifier
    table = section("versions.md", "Supported versions")
    rows = re.findall(r"^\| `([\w-]+)`(?:, extra `(\w+)`)? \| `([^`]+)` \| (.+) \| (.+) \|$", table, flags=re.MULTILINE)
    stated = {(name, extra): SpecifierSet(versions) for name, extra, versions, *_ in rows}
    assert stated == {key: allowed[key] for key in stated}
    assert {name for name, _ in stated} == {
        *("python", "anomalib", "open_clip_torch", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse")
    }
    for name, extra, versions, lowest, newest in rows:
        (floor,) = [one.version for one in SpecifierSet(versions) if one.operator == ">="]
        assert Version(lowest).release[: len(Version(floor).release)] == Version(floor).release, (name, extra)
        assert name == "python" or Version(lowest) == Version(floor), "a version above the lowest proves nothing"
        for version in (lowest, *newest.split(" and ")):
            assert version in SpecifierSet(versions), (name, extra)
    oldest_open_clip = re.search(r"open_clip_torch==([\d.]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert oldest_open_clip is not None
    assert f"| `open_clip_torch` | `>=2.24` | {oldest_open_clip[1]} |" in table
    assert "check_versions()" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_expected_figures_are_the_published_ones() -> None:
    names = {"MVTec AD": "MVTecAD", "VisA": "Visa", "paper": "AprilGan", "WinCLIP": "WinClip", "PatchCore": "Patchcore"}
    rows = re.findall(r"^\| (.+), (\d) \| (\w+) \| (.+) \| (.+) \|$", PAGES["figures.md"], flags=re.MULTILINE)
    stated = {
        (names[model], names[data], shots): f"{pixel} / {image}".split(" / ")
        for data, shots, model, pixel, image in rows
        if model != "rerun"
    }
    expected = {
        key: [
            "?" if (figure := figures[metric]) is None
            else str(figure.mean) if figure.deviation is None
            else f"{figure.mean}±{figure.deviation}"
            for metric in PUBLISHED_METRICS
        ]
        for key, figures in MEAN_FIGURES.items()
    }  # fmt: skip
    assert stated == expected
    assert len([row for row in rows if row[2] == "rerun"]) == 4


def test_the_figures_of_the_model_page_are_the_published_ones() -> None:
    titles = {"Image-Level AUC": "image_AUROC", "Pixel-Level AUC": "pixel_AUROC"}
    titles |= {"Image F1 Score": "image_F1Max", "Pixel F1 Score": "pixel_F1Max"}
    zero_shot = CATEGORY_FIGURES["AprilGan", "MVTecAD", "0"]
    for title, name in titles.items():
        table = PAGES["anomalib-page.md"].partition(f"\n### {title}\n")[2].partition("\n#")[0]
        head, _, *rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.split("\n") if row]
        assert {category.lower().replace(" ", "_") for category in head[2:]} == set(zero_shot)
        metric = f"authors_{name}"
        for shots, row in zip("0124", rows, strict=True):
            mean = MEAN_FIGURES["AprilGan", "MVTecAD", shots][metric]
            assert row[:2] == [f"{shots}-shot", f"{mean.mean / 100:.3f}"]
        expected = [f"{zero_shot[name.lower().replace(' ', '_')][metric].mean / 100:.3f}" for name in head[2:]]
        assert rows[0][2:] == expected
        assert not any(cell for row in rows[1:] for cell in row[2:])


def test_the_metadata_of_the_model_page_are_those_of_the_class() -> None:
    table = section("anomalib-page.md", "Metadata")
    stated = dict(re.findall(r"^\| ([^|]+) \| `([^`]+)`", table, flags=re.MULTILINE))
    assert stated['name, `list_models("title")`'] in list_models("title")
    assert stated["name, `get_model`"] in list_models()
    kinds = [AprilGan("ViT-builtin"), AprilGan("ViT-builtin", k_shot=1), AprilGan("ViT-builtin", adapter=None)]
    row = next(line for line in table.splitlines() if line.startswith("| learning type"))
    assert re.findall(r"`(\w+_\w+)`", row) == [model.learning_type.value for model in kinds]
    clip, stages = open_clip.get_model_config("ViT-L-14-336"), Architecture.of().layers
    assert int(stated["trained parameters"]) == len(stages) * (clip["vision_cfg"]["width"] + 1) * clip["embed_dim"]
    assert int(stated["image size"]) == Architecture.of().image_size


# ---- Texts ----------------------------------------------------------------------------------------------------------


def literals() -> list[str]:
    """Return all strings of the package; values in f-strings are left out."""
    found = []
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_quoted_messages_are_those_of_the_code() -> None:
    ours = PAGES["troubleshooting.md"].partition("\n## Messages of other packages\n")[0]
    quoted = [message for _, message in re.findall(r"^\| (`+)(.+?)\1 \|", ours, flags=re.MULTILINE)]
    patterns = {message: ".*".join(map(re.escape, message.split("..."))) for message in quoted}
    assert len(patterns) > 50
    texts = literals()
    assert [quote for quote, pattern in patterns.items() if not any(re.search(pattern, text) for text in texts)] == []


def test_no_sentence_stands_twice() -> None:
    count: Counter[str] = Counter()
    for text in PAGES.values():
        prose = " ".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())
        count.update(re.split(r"(?<=[.:?]) | \| ", prose))
    assert [sentence for sentence, number in count.items() if number > 1 and len(sentence) > 40] == []
