"""The report of a comparison: from run files and example images to the page and its Markdown."""

import ast
import json
import os
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterable
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomalib_aprilgan import comparison
from anomalib_aprilgan.comparison import report
from anomalib_aprilgan.comparison.folder import safe_name
from anomalib_aprilgan.comparison.plots import bars_by_category, metric_by_seconds, metric_by_shots, styles_of
from anomalib_aprilgan.comparison.published_figures import CATEGORY_FIGURES, MEAN_FIGURES, PUBLISHED_METRICS, Figure
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import (
    AUTHORS_METRICS,
    COLUMNS,
    METRICS,
    read_runs,
    run_file,
    write_run,
    write_table,
)
from anomalib_aprilgan.comparison.tables import ANOMALIB, AUTHORS, add_published, average, harmonic_mean, prepare

CLASSES = {
    "ours": "anomalib_aprilgan.lightning_model.AprilGan",
    "theirs": "anomalib.models.image.winclip.lightning_model.WinClip",
}
NOTHING = "–"  # noqa: RUF001  # a dash
CATEGORIES = ("bottle", "tile", "wood")
STARTED = "2026-01-02T03:04:05"
WEIRD = '<b>|x" & `y_ *z*</td><script>alert(1)</script>{{ 1 }}\n{% x %}'


def run(model: str = "ours", shots: Any = 0, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A row of the table of results, its numbers drawn by its key."""
    row: dict[str, Any] = {"model": model, "data": "MVTecAD", "category": "bottle", "shots": shots, "seed": seed}
    row |= {key: values.pop(key) for key in ("data", "category") if key in values}
    numbers = np.random.default_rng(list("|".join(map(str, row.values())).encode())).uniform(0.5, 1, 14)
    row |= dict(zip((*METRICS, *AUTHORS_METRICS), numbers, strict=True))
    row |= {"status": "done", "class_path": CLASSES.get(model, f"somewhere.{model}"), "started": STARTED}
    return row | {"images": 10, "settings": "0123", "device": "cpu", "torch": "2.9"} | values


def failed(error: str = "RuntimeError: no", **key: Any) -> dict[str, Any]:
    row = without(run(**key), (*METRICS, *AUTHORS_METRICS, "images"))
    return row | {"status": "failed", "error": error}


def without(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in set(names)}


def grid(models: Iterable[str] = CLASSES, shots: Iterable[Any] = (0, 4), seeds: Iterable[int] = (0, 1)) -> list[Any]:
    keys = [(model, count, seed, c) for model in models for count in shots for seed in seeds for c in CATEGORIES]
    return [run(model, count, seed, category=category) for model, count, seed, category in keys]


def folder_of(folder: Path, rows: Iterable[dict[str, Any]]) -> Path:
    for row in rows:
        write_run(folder, row)
    return folder


class Page(HTMLParser):
    """A page's text, its tables with two asterisks before bold cells, and its addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.classes: list[tuple[str, list[str]]] = []
        self.text = ""
        self._is_in_cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "srcset", "data", "poster"}]
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            classes = (dict(attrs).get("class") or "").split()
            self.tables[-1][-1].append("**" if "best" in classes else "")
            self.classes.append((tag, classes))
            self._is_in_cell = True
        elif tag == "br" and self._is_in_cell:
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag in {"td", "th"}:
            self._is_in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._is_in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, title: str, group: str) -> dict[str, list[str]]:
        """Rows of the first table with such a column, in such a group: cells by the name of the row."""
        table = next(table for table in self.tables if any(title in row for row in table[:2]))
        return {row[1]: row[2:] for row in table if row[0] == group}

    def table(self, title: str) -> list[list[str]]:
        """The first table with such a column: its rows without the heading."""
        return next(table for table in self.tables if title in table[0])[1:]


def written(folder: Path) -> tuple[Page, str]:
    """The page and the Markdown of a folder, and that both stand alone."""
    page = Page(write_report(folder))
    assert all(address.startswith("data:image/") for address in page.addresses), "nothing from elsewhere"
    assert all(link.startswith("#") or link == "https://arxiv.org/abs/2305.17382" for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tables, "there is something to see"
    assert not re.search(r"@import|url\(", (folder / "report.html").read_text(encoding="utf-8"))
    return page, (folder / "report.md").read_text(encoding="utf-8")


def shown(values: Iterable[float]) -> str:
    """Mean and standard deviation as the report has them."""
    values = list(values)
    deviation = f" ±{100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


def test_means_over_categories_then_over_seeds(tmp_path: Path) -> None:
    rows = grid(seeds=(0, 1, 2))
    page, markdown = written(folder_of(tmp_path, rows))
    own = [row for row in rows if row["model"] == "ours" and row["shots"] == 4]
    of_seeds = [[row for row in own if row["seed"] == seed] for seed in (0, 1, 2)]
    expected = [shown(mean(row[metric] for row in of_seed) for of_seed in of_seeds) for metric in METRICS]
    vand = [
        mean(2 / (1 / row["image_F1Max"] + 1 / row["pixel_F1Max"]) for row in of_seed)  # the harmonic mean
        for of_seed in of_seeds
    ]
    cells = [cell.replace("*", "") for cell in page.rows("AUPRO", "4-shot")["ours"]]
    assert cells == [*expected, shown(vand), "9 of 9"]
    (line,) = re.findall(r"^\| 4-shot \| ours \| (.*) \|$", markdown, flags=re.MULTILINE)[:1]
    assert line.replace("*", "").split(" | ") == cells
    authors = [shown(mean(row[metric] for row in of_seed) for of_seed in of_seeds) for metric in AUTHORS_METRICS]
    assert [cell.replace("*", "") for cell in page.rows("PRO", "4-shot")["ours"]][:7] == authors


def test_a_single_seed_has_no_deviation_and_a_category_is_a_mean_over_seeds(tmp_path: Path) -> None:
    page, _ = written(folder_of(tmp_path / "one", grid(seeds=(5,))))
    assert "±" not in "".join(page.rows("AUPRO", "zero-shot")["ours"])
    rows = grid(seeds=(0, 1))
    runs = prepare(read_runs(folder_of(tmp_path / "two", rows)))
    cells = average(runs[runs["shots"] == "4"], ANOMALIB, "category").cells
    cell = cells.set_index(["group", "model", "metric"]).loc[("tile", "ours", "image_AUROC")]
    own = [row for row in rows if (row["model"], row["category"], row["shots"]) == ("ours", "tile", 4)]
    values = [row["image_AUROC"] for row in own]
    assert (cell["mean"], cell["std"]) == pytest.approx((mean(values), stdev(values)))


def test_the_f1_of_the_challenge() -> None:
    first, second = pd.Series([0.8, 0.0, 0.5, 0.5]), pd.Series([0.4, 0.0, 0.0, np.nan])
    assert harmonic_mean(first, second).tolist() == pytest.approx([8 / 15, 0, 0, np.nan], nan_ok=True)


def test_the_best_of_a_group_is_bold(tmp_path: Path) -> None:
    best = {"ours": 0.91, "theirs": 0.93, "third": 0.9299}  # the last two are the same at the precision shown
    rows = [run(model, 0, category="tile", image_AUROC=value) for model, value in best.items()]
    rows += [run("ours", 4, category="tile", image_AUROC=0.99)]
    page, markdown = written(folder_of(tmp_path, rows))
    group = page.rows("AUPRO", "zero-shot")
    assert [group[model][0] for model in best] == ["91.0", "**93.0", "**93.0"]
    assert page.rows("AUPRO", "4-shot")["ours"][0] == "99.0", "it has nobody to compare with"
    assert "| theirs | **93.0** |" in markdown, "the same cells are bold"


def test_failed_runs_are_listed_and_in_no_mean(tmp_path: Path) -> None:
    values = {"ours": 0.9, "theirs": 0.5, "third": 0.4}
    rows = [row | {"image_AUROC": values[row["model"]]} for row in grid(values, shots=(4,))]
    gone = next(n for n, row in enumerate(rows) if (row["model"], row["category"], row["seed"]) == ("ours", "tile", 1))
    rows[gone] = failed("ValueError: <i>|", model="ours", shots=4, seed=1, category="tile")
    page, markdown = written(folder_of(tmp_path, rows))
    group = page.rows("AUPRO", "4-shot")
    assert group["ours"][0] == "90.0 ±0.0", "the failed run is no zero"
    assert group["ours"][-1] == "5 of 6 †"
    assert "*" not in group["ours"][0], "it is over fewer categories"
    assert "*" not in group["theirs"][0], "it is not the best, and whether the other one is is not known"
    for text in (page.text, markdown):
        assert "1 of 18 runs failed" in text.partition("What was compared")[0], "before all else"
        assert re.search(r"† ours, 4-shot:\s+without tile with seed 1", text)
    assert "ValueError: <i>|" in page.text, "escaped, thus shown"
    assert r"ValueError: \<i\>\|" in markdown


def test_a_category_that_was_never_run_is_missed(tmp_path: Path) -> None:
    rows = [row for row in grid(shots=(4,)) if (row["model"], row["category"]) != ("theirs", "wood")]
    page, _ = written(folder_of(tmp_path, rows))
    assert page.rows("AUPRO", "4-shot")["theirs"][-1] == "4 of 6 †"
    assert "without wood with seed 0, wood with seed 1" in " ".join(page.text.split())


def test_a_whole_seed_that_is_missing_leaves_a_mean_comparable(tmp_path: Path) -> None:
    rows = [row for row in grid(shots=(4,)) if (row["model"], row["seed"]) != ("theirs", 1)]
    rows = [row | {"image_AUROC": 0.9 if row["model"] == "theirs" else 0.5} for row in rows]
    page, _ = written(folder_of(tmp_path, rows))
    assert page.rows("AUPRO", "4-shot")["theirs"][0] == "**90.0"
    assert page.rows("AUPRO", "4-shot")["theirs"][-1] == "3 of 6 †"
    assert "without seed 1" in page.text


def test_a_number_that_some_runs_lack_is_marked(tmp_path: Path) -> None:
    rows = grid(shots=(0,), seeds=(0,))
    del rows[0]["pixel_AUROC"]
    page, markdown = written(folder_of(tmp_path, rows))
    expected = mean(row["pixel_AUROC"] for row in rows[1:3])
    assert page.rows("AUPRO", "zero-shot")["ours"][3] == f"{100 * expected:.1f} ‡"
    assert f"{100 * expected:.1f} ‡ |" in markdown


def test_long_errors_are_folded(tmp_path: Path) -> None:
    error = "RuntimeError: <b>" + "too long\n" * 50
    page, _ = written(folder_of(tmp_path, [run(), failed(error, model="theirs")]))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    (folded,) = re.findall(r"<details><summary><span>(.*?)</span></summary></details>", html, flags=re.DOTALL)
    assert folded == error.replace("<", "&lt;").replace(">", "&gt;")
    assert "-webkit-line-clamp: 2" in html
    assert page.table("error")[0][-1] == error


def test_the_title_is_the_name_of_the_data(tmp_path: Path) -> None:
    def arguments(**values: str) -> str:
        return json.dumps({"data": {"class_path": "somewhere.Folder", "init_args": values}})

    bolts = run(data="Folder", category="", arguments=arguments(name="<bolts>", root="data/x"))
    screws = run(arguments=arguments(root="data/screws"))
    standard = run(data="Visa", category="pcb1", arguments=arguments(root="data/visa"))
    page, markdown = written(folder_of(tmp_path, [bolts, screws, standard]))
    title = "<bolts>, screws (MVTecAD), Visa: comparison of 1 model"
    assert page.text.count(title) == 2, "title and heading"
    assert markdown.startswith(r"# \<bolts\>, screws (MVTecAD), Visa: comparison of 1 model")
    assert [row[2] for row in page.table("s per image")] == ["<bolts>", "screws (MVTecAD)", "Visa"]
    same = [run(arguments=arguments(name="a")), run(data="Visa", category="pcb1", arguments=arguments(name="a"))]
    assert "a (MVTecAD), a (Visa): comparison" in written(folder_of(tmp_path / "same", same))[0].text


def test_pages_and_plots_follow_the_colour_scheme(tmp_path: Path) -> None:
    page, _ = written(folder_of(tmp_path, grid()))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@media screen and (prefers-color-scheme: dark)" in html
    svgs = [b64decode(address.partition(",")[2]).decode() for address in page.addresses if "svg" in address[:20]]
    assert svgs
    for svg in svgs:
        assert "@media (prefers-color-scheme: dark) { svg { color:" in svg
        assert "fill: currentColor" in svg
        assert not re.search(r"(fill|stroke): #(000000|ffffff|16191d)", svg), "readable on white and on dark"


def test_nothing_but_failures(tmp_path: Path) -> None:
    page, markdown = written(folder_of(tmp_path, [failed(model="ours"), failed(model="theirs")]))
    assert "2 of 2 runs failed" in page.text
    assert "2 of 2 runs failed" in markdown
    assert "No run is done." in page.text


def test_published_rows_stand_beside_and_not_in(tmp_path: Path) -> None:
    rows = [row for row in grid() if row["category"] != "wood"]
    page, markdown = written(folder_of(tmp_path, rows))
    with_them, without = page.rows("PRO", "zero-shot"), page.rows("AUPRO", "zero-shot")
    assert list(without) == ["ours", "theirs"], "the numbers belong to the authors' protocol"
    assert list(with_them) == [
        "ours",
        "theirs",
        "AprilGan, published [Q]",
        "AprilGan, published [M]",
        "WinClip, published [Q]",
    ]
    quoted = with_them["AprilGan, published [Q]"]
    assert quoted == ["86.1", "90.4", "93.5", "87.6", "43.3", "40.8", "44.0", NOTHING, "15 categories"]
    assert with_them["AprilGan, published [M]"][0] == "95.8", "the mean of bottle's 91.7 and tile's 99.9"
    for text in (page.text, markdown.replace("\\", "")):
        assert text.count("[Q] are means over all 15 categories; 2 were measured here.") == 1
    assert with_them["WinClip, published [Q]"][5] == NOTHING, "not found, not guessed"
    assert page.rows("PRO", "4-shot")["AprilGan, published [Q]"][0] == "92.8 ±0.2"
    assert not any("*" in cell for name, cells in with_them.items() if "published" in name for cell in cells)
    own = [row for row in rows if (row["model"], row["shots"]) == ("ours", 0)]
    of_seeds = [mean(row["authors_image_AUROC"] for row in own if row["seed"] == seed) for seed in (0, 1)]
    assert with_them["ours"][0].replace("*", "") == shown(of_seeds)
    assert r"| zero-shot | _AprilGan, published \[Q\]_ | 86.1 |" in markdown


def test_nothing_was_published_of_other_categories(tmp_path: Path) -> None:
    rows = [*grid(), run("ours", 0, category="gear"), run("ours", 0, data="Visa", category="bottle")]
    page, _ = written(folder_of(tmp_path, rows))
    assert "published [" not in page.text
    assert "No published figures are known for these models and this data." in page.text


def test_images_without_masks_have_image_metrics_only(tmp_path: Path) -> None:
    pixels = [metric for metric in (*METRICS, *AUTHORS_METRICS) if "pixel" in metric]
    rows = [without(run(model, 0, data="Folder", category=""), pixels) for model in CLASSES]
    page, markdown = written(folder_of(tmp_path / "without", rows))
    for text in (page.text, markdown):
        assert "no masks" in text
        assert "pixel AUROC" not in text
    headings = [row[2:-1] for table in page.tables for row in table if row[:2] == ["shots", "model"]]
    assert ["AUROC", "F1-max", "AUPR"] in headings, "and no others"
    page, markdown = written(folder_of(tmp_path / "with", [run()]))
    assert "no masks" not in page.text + markdown
    both = [*rows, run(), run("theirs", category="tile"), failed(model="ours", data="Visa", category="pcb1")]
    page, markdown = written(folder_of(tmp_path / "both", both))
    for text in (page.text, markdown):
        assert text.count("no masks") == 1, "each data set has a section of its own"
        assert text.count("By anomalib's protocol") == 2
        assert "Folder (1 category, 10 test images), MVTecAD (2 categories, 20 test images), Visa (1 category):" in text
        assert text.count("No run is done.") == 1
    counts = [row[-1] for table in page.tables for row in table if row[:2] == ["zero-shot", "ours"]]
    assert counts == ["1 of 1", "1 of 1", "1 of 2 †", "1 of 2 †"], "categories of another data set are not missed"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row | {"seconds_per_image": 0.1 + row["seed"]} for row in grid()])
    draw_example(folder, "bottle", "hole/000.png", {("ours", 0, 0): (0.9, True)})
    both = [(write_report(folder).read_bytes(), (folder / "report.md").read_bytes()) for _ in range(2)]
    assert both[0] == both[1]


@pytest.mark.posix
def test_all_texts_are_escaped(tmp_path: Path) -> None:
    rows = [row | {"references": "/a|b/<i>.png"} for row in grid([WEIRD, "$x$", "_y"])]
    rows += [run(WEIRD, 0, category=r"$\nothing$")]
    rows += [failed(WEIRD, model=WEIRD, category=WEIRD, seed=7)]
    folder = folder_of(tmp_path / WEIRD.replace("/", "").replace("\n", ""), rows)
    page, markdown = written(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert WEIRD in page.text
    assert "<b>|x" not in html
    assert "<i>.png" not in html
    assert "<script" not in html.lower()
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, "no text opens a cell of its own"
    assert r"\<b\>\|x" in markdown
    assert "<b>" not in markdown.partition("```bash")[0], "the command, which has the folder's name, is code"


@pytest.mark.posix
def test_no_folder_name_ends_the_block_of_the_command(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "it's\n```\n# title\r\x1b\\ é", [run()])
    _, markdown = written(folder)
    command = markdown.partition("```bash\n")[2].partition("\n```")[0]
    assert "\n" not in command
    printed = subprocess.run(
        ["bash", "-c", f"printf %s {command.partition(' report ')[2]}"], capture_output=True, check=True
    )
    assert printed.stdout.decode() == str(folder)


def test_a_run_that_ends_while_the_report_is_written_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, [run()])
    original = write_table

    def write_late(folder: Path, runs: pd.DataFrame) -> Path:
        write_run(folder, run("theirs"))  # by another process, whose table this one overwrites
        return original(folder, runs)

    monkeypatch.setattr(report, "write_table", write_late)
    write_report(tmp_path)
    assert sorted(pd.read_csv(tmp_path / "results.csv").model) == ["ours", "theirs"]


def draw_example(
    folder: Path,
    category: str,
    image: str,
    predictions: dict[tuple[str, int, int], tuple[float, bool]],
    *,
    anomalous: bool = True,
    size: int = 64,
) -> Path:
    """Write a grey image and maps that are hot in the upper left quarter."""
    example = folder / "examples" / safe_name("MVTecAD", category) / safe_name(image)
    example.mkdir(parents=True)
    Image.new("RGB", (size, size), "grey").save(example / "image.png")
    hot = np.zeros((size, size), np.uint8)
    hot[: size // 2, : size // 2] = 255
    if anomalous:
        Image.fromarray(hot).save(example / "mask.png")
    for (model, shots, seed), (score, label) in predictions.items():
        key = {"model": model, "data": "MVTecAD", "category": category, "shots": str(shots), "seed": str(seed)}
        stem = safe_name(*key.values())
        Image.fromarray(hot).save(example / f"{stem}.png")
        content = key | {"image": image, "score": score, "label": label, "anomalous": anomalous, "started": STARTED}
        (example / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")
    return example


def test_examples_show_heatmaps_scores_and_wrong_labels(tmp_path: Path) -> None:
    seeds = (3, 4, 10, 11, 100)
    rows = [run("ours", 0, seed) for seed in (2, *seeds)] + [run("theirs", 4), run("a/b", 0, 3, category="tile")]
    folder_of(tmp_path, [*rows, run("theirs", 0, started="later"), failed(model="theirs", shots=2)])
    first = {("ours", 0, 2): (0.81, True), ("theirs", 4, 0): (0.22, False)}
    others = {("ours", 0, seed): (0.33, False) for seed in seeds}
    unknown = dict.fromkeys([("theirs", 0, 0), ("theirs", 2, 0), ("ours", 1, 0)], (0.44, True))
    draw_example(tmp_path, "bottle", "hole/000.png", first | others | unknown)
    draw_example(tmp_path, "tile", "good/<i>.png", {("a/b", 0, 3): (0.64, True)}, anomalous=False)
    page, _ = written(tmp_path)
    table = next(table for table in page.tables if "ground truth" in table[0])
    assert table[0][2:] == ["a/b zero-shot", "ours zero-shot", "theirs 4-shot"], (
        "by shots, then models in their order, without earlier attempts and failed or unknown runs"
    )
    assert [[" ".join(cell.split()) for cell in row] for row in table[1:]] == [
        ["bottle hole/000.png", "", NOTHING, "0.81 anomalous", "0.22 normal ✗"],
        ["tile good/<i>.png", "no mask", "0.64 anomalous ✗", NOTHING, NOTHING],
    ], "only the first seed"
    images = [
        Image.open(BytesIO(b64decode(address.partition(",")[2])))
        for address in page.addresses
        if address.startswith("data:image/jpeg")
    ]
    heatmap = next(image for image in images[3:] if image.size == (64, 64))
    assert len(images) == 1 + 2 + 1 + 3, "the scale, two images, one mask, three heatmaps"
    red, _, blue = heatmap.getpixel((8, 8))
    assert red > blue + 50, "hot"
    red, _, blue = heatmap.getpixel((56, 56))
    assert blue > red + 50, "cold"


def test_at_most_two_dozen_examples_of_all_categories(tmp_path: Path) -> None:
    folder_of(tmp_path, grid())
    for number in range(40):
        draw_example(tmp_path, CATEGORIES[0], f"hole/{number:03d}.png", {("ours", 0, 0): (0.9, True)}, size=8)
    draw_example(tmp_path, CATEGORIES[2], "hole/000.png", {("ours", 0, 0): (0.9, True)}, size=8)
    page, _ = written(tmp_path)
    rows = page.table("ground truth")
    assert len(rows) == 24
    assert rows[-1][0] == "wood hole/000.png", "every category is shown"
    assert "24 of 41 test images" in page.text


@pytest.mark.posix
def test_damaged_examples_are_left_out(tmp_path: Path) -> None:
    folder_of(tmp_path, grid())
    names = ("ours", 0, 0), ("theirs", 0, 0)
    example = draw_example(tmp_path, "bottle", "hole/000.png", dict.fromkeys(names, (0.8, True)))
    stems = [safe_name(model, "MVTecAD", "bottle", str(shots), str(seed)) for model, shots, seed in names]
    (example / f"{stems[0]}.json").write_text('{"score": 0.', encoding="utf-8")
    heatmap = example / f"{stems[1]}.png"
    heatmap.write_bytes(heatmap.read_bytes()[:60])
    (draw_example(tmp_path, "bottle", "hole/001.png", {("ours", 0, 0): (0.9, True)}) / "image.png").write_bytes(b"")
    other = draw_example(tmp_path, "bottle", "hole/002.png", {("ours", 0, 0): (0.9, True)})
    (prediction,) = other.glob("*.json")
    (example / "deep.json").write_text("[" * 100_000, encoding="utf-8")
    (example / "huge.json").write_text(
        prediction.read_text(encoding="utf-8").replace("0.9", "1" + "0" * 400), encoding="utf-8"
    )
    os.mkfifo(example / "pipe.json")
    (other / "image.png").unlink()
    os.mkfifo(other / "image.png")
    bomb = draw_example(tmp_path, "bottle", "hole/003.png", {("ours", 0, 0): (0.9, True)})
    Image.new("1", (9000, 9000)).save(bomb / "image.png")
    page, _ = written(tmp_path)
    (row,) = page.table("ground truth")
    assert [" ".join(cell.split()) for cell in row] == ["bottle hole/000.png", "", "no heatmap 0.80 anomalous"]


def test_without_examples_there_is_no_gallery(tmp_path: Path) -> None:
    page, _ = written(folder_of(tmp_path, grid()))
    assert "Examples" not in page.text
    assert "ground truth" not in page.text


def test_costs_are_medians_and_the_most_memory(tmp_path: Path) -> None:
    seconds, memory = (0.5, 0.25, 4.0), (100.0, 900.0, 200.0)
    rows = [
        run("ours", 4, seed, seconds_per_image=second, peak_memory_mb=most, fit_seconds=second * 10, parameters=2.5e6)
        for seed, (second, most) in enumerate(zip(seconds, memory, strict=True))
    ]
    page, markdown = written(folder_of(tmp_path, rows))
    (row,) = page.table("s per image")
    expected = [f"{median(seconds):g}", "5", NOTHING, "900", "2.5", "3", "cpu"]
    assert row == ["ours", "4-shot", "MVTecAD", *expected]
    assert f"| MVTecAD | {' | '.join(expected)} |" in markdown


def test_what_was_compared_is_listed(tmp_path: Path) -> None:
    rows = grid(shots=(4, "full", 0, 16))
    rows.append(run("ours", 4, 2, started="2026-02-03T04:05:06", settings="4567", torch="3"))
    page, markdown = written(folder_of(tmp_path / "changed", rows))
    assert page.tables[0][1][1:] == ["0, 4, 16, full", "0, 1, 2", "25 of 25", CLASSES["ours"]]
    for text in (page.text, markdown):
        assert "2026-01-02 03:04 to 2026-02-03 04:05" in text
        assert re.search(r"torch(: |\n?)2\.9; 3 \(differs between runs\)", text)
        assert "ours was run with different settings" in text
        assert "theirs was run with different settings" not in text
        assert f"anomalib-aprilgan report {tmp_path / 'changed'}" in text
    assert "(3 categories, 30 test images)" in page.text
    assert "Settings of models" not in page.text
    arguments = {"arguments": '{"image_size": 518}'}
    assert '{"image_size": 518}' in written(folder_of(tmp_path / "settings", [run() | arguments]))[0].text


def test_models_with_the_same_references_share_a_line(tmp_path: Path) -> None:
    same = [run(model, 2, references="data/good/1.png;data/good/2.png") for model in CLASSES]
    page, markdown = written(folder_of(tmp_path / "same", same))
    assert page.table("folder") == [["bottle", "2-shot", "0", "1.png, 2.png", "data/good", "ours, theirs"]]
    assert "all models had the same reference images" in page.text
    assert "all models had the same reference images" in markdown
    same[1]["references"] = "data/good/1.png;data/other/2.png"
    other, other_markdown = written(folder_of(tmp_path / "others", same))
    assert [row[3:5] for row in other.table("folder")] == [
        ["1.png, 2.png", "data/good"],
        ["data/good/1.png, data/other/2.png", ""],
    ]
    assert "Models had different reference images" in other.text
    assert "Models had different reference images" in other_markdown
    assert "Models had different reference images" not in page.text


def titles(page: Page) -> list[str]:
    return re.findall(r"(?:Image|Pixel) AUROC, [\w -]+", page.text)


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    times = [row | {"seconds_per_image": 0.5} for row in grid(shots=(0, 2, 4))]
    kinds = ("by reference images", "by time", "zero-shot", "4-shot", "by reference images")
    page, _ = written(folder_of(tmp_path / "all", times))
    assert titles(page) == [f"{level} AUROC, {kind}" for kind in kinds for level in ("Image", "Pixel")]
    page, _ = written(folder_of(tmp_path / "one", [run("ours", 4)]))
    assert titles(page) == [], "one number makes no plot"
    page, _ = written(folder_of(tmp_path / "shared", [*grid(shots=(2,)), *grid(["ours"], shots=(4,))]))
    assert "Image AUROC, 2-shot" in titles(page)
    assert "Image AUROC, 4-shot" not in titles(page), "there is nothing to compare with"


def test_a_model_keeps_its_colour_and_published_points_are_hollow(tmp_path: Path) -> None:
    runs = prepare(read_runs(folder_of(tmp_path, [row | {"seconds_per_image": 0.5} for row in grid()])))
    styles = styles_of(CLASSES)
    assert len(set(styles_of(map(str, range(56))).values())) == 56
    metric = "authors_image_AUROC"
    means = average(runs, AUTHORS, "shots")
    drawn = metric_by_shots(means.cells, metric, styles)
    assert drawn is not None
    categories = average(runs[runs["shots"] == "4"], AUTHORS, "category").cells
    others = [metric_by_seconds(means.cells, metric, styles), bars_by_category(categories, metric, styles)]
    colours = [style.colour.lower() for style in styles.values()]
    assert all(colour in (svg or "") for colour in colours for svg in [drawn, *others])
    with_published = metric_by_shots(add_published(means, runs, "shots").cells, metric, styles) or ""
    hollow = r'<use [^>]*style="fill-opacity: 0; stroke: (#\w+)'
    assert not re.findall(hollow, drawn)
    assert sorted(re.findall(hollow, with_published)) == sorted(colours * 2), "for 0 and 4 shots each, [Q] only"
    page, _ = written(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for place, style in enumerate(styles.values()):
        assert f'.model-{place}::before {{ content: "{style.character} "; color: {style.colour}; }}' in html
    marked = [classes for tag, classes in page.classes if tag == "td" and {"model-1", "hollow"} & set(classes)]
    assert any("hollow" in classes for classes in marked)
    assert any("model-1" in classes for classes in marked)
    assert not any({"model-1", "hollow"} <= set(classes) for classes in marked)


def test_the_table_is_for_spreadsheets(tmp_path: Path) -> None:
    rows = [run("=1+1", 0, parameters=3, image_AUROC=0.1 + 0.2), failed('+a\nb,\r\n"c"', model="@x"), run("\n-y")]
    folder = folder_of(tmp_path, rows)
    assert set(read_runs(folder)["model"]) == {"=1+1", "@x", "\n-y"}, "run files hold the texts as they are"
    write_report(folder)
    table = pd.read_csv(folder / "results.csv", float_precision="round_trip")
    assert tuple(table.columns) == COLUMNS
    assert set(table["model"]) == {"'=1+1", "'@x", "' -y"}
    assert table["error"].dropna().tolist() == ['\'+a b, "c"']
    assert table.set_index("model").loc["'=1+1", ["image_AUROC", "parameters"]].tolist() == [0.1 + 0.2, 3]
    assert len((folder / "results.csv").read_text(encoding="utf-8").splitlines()) == 4
    (folder / "results.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"results\.csv to be the table of a comparison.*'a,b'.*Move it elsewhere"):
        write_report(folder)
    assert (folder / "results.csv").read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{re.escape(repr(str(tmp_path)))} holds no finished run\. Pass the folder"):
        write_report(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.posix
def test_damaged_and_foreign_run_files_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, [run(), run("theirs")])
    path = run_file(tmp_path, ["ours", "MVTecAD", "bottle", "0", "0"])
    whole = path.read_text(encoding="utf-8")
    key = json.loads(whole)
    contents = {
        whole[:-7]: "it is damaged",
        "": "it is damaged",
        "[1]": "it holds no JSON object",
        "{}": "it lacks",
        json.dumps(key | {"colour": "red"}): r"it holds \['colour'\]",
        json.dumps(key | {"seed": 0}): r"it holds values of wrong types in \['seed'\]",
        json.dumps(key | {"image_AUROC": "high"}): r"it holds values of wrong types in \['image_AUROC'\]",
        json.dumps(key | {"images": 10**400}): r"it holds values of wrong types in \['images'\]",
        json.dumps(key | {"image_AUROC": float("inf")}): r"it holds values of wrong types in \['image_AUROC'\]",
        json.dumps(key | {"shots": "9" * 5000}): r"it holds values of wrong types in \['shots'\]",
        json.dumps(key | {"arguments": '{"data": [1]}'}): r"it holds values of wrong types in \['arguments'\]",
        json.dumps(key | {"arguments": "[" * 100_000}): "it is damaged",
        "[" * 100_000: "it is damaged",
        json.dumps(key | {"status": "perhaps"}): "its status is 'perhaps'",
        json.dumps(key | {"seed": "9"}): "its name does not belong to its content",
    }
    for content, problem in contents.items():
        path.write_text(content, encoding="utf-8")
        expected = f"{re.escape(str(path))} to be the file of a run, but {problem}.*Delete it to repeat the run"
        with pytest.raises(ValueError, match=expected):
            write_report(tmp_path)
    path.unlink()
    path.with_name(".unfinished-x.json").write_text("{", encoding="utf-8")
    path.with_name("notes.txt").write_text("mine", encoding="utf-8")
    os.mkfifo(path.with_name("pipe.json"))
    assert read_runs(tmp_path)["model"].tolist() == ["theirs"], "temporary and other files are ignored"


def test_published_figures() -> None:
    quoted = MEAN_FIGURES["AprilGan", "MVTecAD", "4"]
    assert quoted["authors_pixel_AUROC"] == Figure(95.9, 0.0)
    assert quoted["authors_pixel_AUPR"] == Figure(54.5)
    assert quoted["authors_image_AUPR"] == Figure(96.3, 0.1)
    assert MEAN_FIGURES["AprilGan", "MVTecAD", "1"]["authors_pixel_AUPR"] is None
    assert MEAN_FIGURES["AprilGan", "MVTecAD", "2"]["authors_pixel_F1Max"] == Figure(55.9, 0.5)
    assert MEAN_FIGURES["AprilGan", "Visa", "0"]["authors_pixel_PRO"] == Figure(86.8)
    assert MEAN_FIGURES["AprilGan", "Visa", "4"]["authors_image_F1Max"] == Figure(88.4, 0.5)
    assert MEAN_FIGURES["WinClip", "MVTecAD", "0"]["authors_image_AUROC"] == Figure(91.8)
    assert MEAN_FIGURES["WinClip", "Visa", "2"]["authors_pixel_PRO"] == Figure(86.2)
    assert MEAN_FIGURES["Patchcore", "Visa", "1"]["authors_image_F1Max"] == Figure(81.7)
    assert ("Patchcore", "MVTecAD", "0") not in MEAN_FIGURES
    assert len(MEAN_FIGURES) == 8 + 8 + 6
    assert CATEGORY_FIGURES["AprilGan", "MVTecAD", "0"]["zipper"]["authors_pixel_PRO"] == Figure(10.7)
    assert CATEGORY_FIGURES["AprilGan", "Visa", "0"]["pcb1"]["authors_image_AUROC"] == Figure(51.2)
    assert set(PUBLISHED_METRICS) == set(AUTHORS_METRICS)


@pytest.mark.parametrize(
    ("data", "categories", "means"),
    [
        ("MVTecAD", 15, (87.6, 43.3, 40.8, 44.0, 86.1, 90.4, 93.6)),
        ("Visa", 12, (94.2, 32.3, 25.8, 86.6, 77.5, 78.6, 80.9)),
    ],
)
def test_published_categories_agree_with_their_mean(data: str, categories: int, means: tuple[float, ...]) -> None:
    figures = CATEGORY_FIGURES["AprilGan", data, "0"].values()
    assert len(figures) == categories
    for metric, expected in zip(PUBLISHED_METRICS, means, strict=True):
        values = [figure[metric] for figure in figures]
        assert mean(value.mean for value in values if value) == pytest.approx(expected, abs=0.1)


def test_the_report_knows_no_model() -> None:
    names = ("published_figures", "tables", "summaries", "plots", "gallery", "report", "results", "folder")
    for name in names:
        path = Path(comparison.__file__).with_name(f"{name}.py")
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not {"torch", "open_clip", "lightning"} & {str(module).partition(".")[0] for module in imported}, name
