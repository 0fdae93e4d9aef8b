"""The report of a comparison, from a table of results and a few pictures to the page and its Markdown."""

import ast
import json
import re
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
from anomalib_aprilgan.comparison.plots import bars_by_category, metric_by_seconds, metric_by_shots, styles_of
from anomalib_aprilgan.comparison.protocols import ANOMALIB, AUTHORS, harmonic_mean, with_derived
from anomalib_aprilgan.comparison.published_figures import CATEGORY_FIGURES, MEAN_FIGURES, PUBLISHED_METRICS, Figure
from anomalib_aprilgan.comparison.published_rows import published_mean_rows
from anomalib_aprilgan.comparison.report import write_report
from anomalib_aprilgan.comparison.results import AUTHORS_METRICS, METRICS, append_row, read_results
from anomalib_aprilgan.comparison.tables import category_rows, mean_rows

CLASSES = {
    "ours": "anomalib_aprilgan.lightning_model.AprilGan",
    "theirs": "anomalib.models.image.winclip.lightning_model.WinClip",
}
NOTHING = "–"  # noqa: RUF001  # a dash
CATEGORIES = ("bottle", "tile", "wood")
WEIRD = '<b>|x" & `y_ *z*'


def run(model: str = "ours", shots: Any = 0, seed: int = 0, **values: Any) -> dict[str, Any]:
    """A row of the table of results, its numbers drawn by its key."""
    row: dict[str, Any] = {"model": model, "data": "MVTecAD", "category": "bottle", "shots": shots, "seed": seed}
    row |= {key: values.pop(key) for key in ("data", "category") if key in values}
    numbers = np.random.default_rng(list("|".join(map(str, row.values())).encode())).uniform(0.5, 1, 14)
    row |= dict(zip((*METRICS, *AUTHORS_METRICS), numbers, strict=True))
    row |= {"status": "done", "class_path": CLASSES.get(model, f"somewhere.{model}"), "started": "2026-01-02T03:04:05"}
    return row | {"images": 10, "settings": "0123", "device": "cpu", "torch": "2.9"} | values


def failed(error: str = "RuntimeError: no", **key: Any) -> dict[str, Any]:
    return run(**key) | dict.fromkeys((*METRICS, *AUTHORS_METRICS, "images"), "") | {"status": "failed", "error": error}


def grid(models: Iterable[str] = CLASSES, shots: Iterable[Any] = (0, 4), seeds: Iterable[int] = (0, 1)) -> list[Any]:
    keys = [(model, count, seed, c) for model in models for count in shots for seed in seeds for c in CATEGORIES]
    return [run(model, count, seed, category=category) for model, count, seed, category in keys]


def table_of(folder: Path, rows: Iterable[dict[str, Any]], name: str = "results.csv") -> Path:
    for row in rows:
        append_row(folder / name, row)
    return folder


class Page(HTMLParser):
    """What a page shows and what it asks for: its text, its tables with bold cells in asterisks, and its addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
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
            self.tables[-1][-1].append("")
            self._is_in_cell = True
        elif tag in {"b", "br"} and self._is_in_cell:
            self.tables[-1][-1][-1] += {"b": "**", "br": " "}[tag]

    def handle_endtag(self, tag: str) -> None:
        if tag == "b" and self._is_in_cell:
            self.tables[-1][-1][-1] += "**"
        elif tag in {"td", "th"}:
            self._is_in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._is_in_cell:
            self.tables[-1][-1][-1] += data

    def rows(self, title: str, group: str) -> dict[str, list[str]]:
        """Rows of the first table with such a column, in such a group: cells by the name of the row."""
        table = next(table for table in self.tables if any(title in row for row in table[:2]))
        names = [row[0].strip() for row in table]
        start = names.index(group) + 1
        found = {}
        for row in table[start:]:
            if len(row) == 2:  # the next group
                break
            found[re.sub(r"^\W+", "", row[0].strip())] = [" ".join(cell.split()) for cell in row[1:]]
        return found


def written(folder: Path) -> tuple[Page, str]:
    """The page and the Markdown of a folder, and that both stand alone."""
    page = Page(write_report(folder))
    assert all(address.startswith("data:image/") for address in page.addresses), "nothing from elsewhere"
    assert all(link.startswith("#") or link == "https://arxiv.org/abs/2305.17382" for link in page.links)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\(", (folder / "report.html").read_text(encoding="utf-8"))
    return page, (folder / "report.md").read_text(encoding="utf-8")


def shown(values: Iterable[float]) -> str:
    """Mean and standard deviation as the report has them."""
    values = list(values)
    deviation = f" ±{100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}"


def test_means_over_categories_then_over_seeds(tmp_path: Path) -> None:
    rows = grid(seeds=(0, 1, 2))
    page, markdown = written(table_of(tmp_path, rows))
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
    page, _ = written(table_of(tmp_path / "one", grid(seeds=(5,))))
    assert "±" not in "".join(page.rows("AUPRO", "zero-shot")["ours"])
    rows = grid(seeds=(0, 1))
    runs = with_derived(read_results(table_of(tmp_path / "two", rows)))
    cell = category_rows(runs, ANOMALIB, "4")["tile"][0].cells["image_AUROC"]
    own = [row for row in rows if (row["model"], row["category"], row["shots"]) == ("ours", "tile", 4)]
    values = [row["image_AUROC"] for row in own]
    assert cell[:2] == pytest.approx((mean(values), stdev(values)))


def test_the_f1_of_the_challenge() -> None:
    assert harmonic_mean(0.8, 0.4) == pytest.approx(8 / 15)
    assert harmonic_mean(0.0, 0.0) == 0
    assert harmonic_mean(0.5, 0.0) == 0
    assert np.isnan(harmonic_mean(0.5, np.nan))


def test_the_best_of_a_group_is_bold(tmp_path: Path) -> None:
    best = {"ours": 0.91, "theirs": 0.93, "third": 0.9299}  # the last two are the same at the precision shown
    rows = [run(model, 0, category="tile", image_AUROC=value) for model, value in best.items()]
    rows += [run("ours", 4, category="tile", image_AUROC=0.99)]
    page, markdown = written(table_of(tmp_path, rows))
    group = page.rows("AUPRO", "zero-shot")
    assert [group[model][0] for model in best] == ["91.0", "**93.0**", "**93.0**"]
    assert page.rows("AUPRO", "4-shot")["ours"][0] == "99.0", "it has nobody to compare with"
    assert "| theirs | **93.0** |" in markdown


def test_failed_runs_are_told_and_counted_but_in_no_mean(tmp_path: Path) -> None:
    values = {"ours": 0.9, "theirs": 0.5, "third": 0.4}
    rows = [row | {"image_AUROC": values[row["model"]]} for row in grid(values, shots=(4,))]
    gone = next(n for n, row in enumerate(rows) if (row["model"], row["category"], row["seed"]) == ("ours", "tile", 1))
    rows[gone] = failed("ValueError: <i>|", model="ours", shots=4, seed=1, category="tile")
    page, markdown = written(table_of(tmp_path, rows))
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
    page, _ = written(table_of(tmp_path, rows))
    assert page.rows("AUPRO", "4-shot")["theirs"][-1] == "4 of 6 †"
    assert "without wood with seed 0, wood with seed 1" in " ".join(page.text.split())


def test_a_whole_seed_that_is_missing_leaves_a_mean_comparable(tmp_path: Path) -> None:
    rows = [row for row in grid(shots=(4,)) if (row["model"], row["seed"]) != ("theirs", 1)]
    rows = [row | {"image_AUROC": 0.9 if row["model"] == "theirs" else 0.5} for row in rows]
    page, _ = written(table_of(tmp_path, rows))
    assert page.rows("AUPRO", "4-shot")["theirs"][0] == "**90.0**"
    assert page.rows("AUPRO", "4-shot")["theirs"][-1] == "3 of 6 †"
    assert "without seed 1" in page.text


def test_a_number_that_some_runs_lack_is_marked(tmp_path: Path) -> None:
    rows = grid(shots=(0,), seeds=(0,))
    rows[0]["pixel_AUROC"] = ""
    page, markdown = written(table_of(tmp_path, rows))
    expected = mean(row["pixel_AUROC"] for row in rows[1:3])
    assert page.rows("AUPRO", "zero-shot")["ours"][3] == f"{100 * expected:.1f} ‡"
    assert f"{100 * expected:.1f} ‡ |" in markdown


def test_nothing_but_failures(tmp_path: Path) -> None:
    page, markdown = written(table_of(tmp_path, [failed(model="ours"), failed(model="theirs")]))
    assert "2 of 2 runs failed" in page.text
    assert "2 of 2 runs failed" in markdown
    assert "No run is done." in page.text


def test_published_rows_stand_beside_and_not_in(tmp_path: Path) -> None:
    rows = [row for row in grid() if row["category"] != "wood"]
    page, markdown = written(table_of(tmp_path, rows))
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
    assert quoted == ["86.1", "90.4", "93.5", "87.6", "43.3", "40.8", "44.0", NOTHING, "15 categories, 2 measured here"]
    assert with_them["AprilGan, published [M]"][0] == "95.8", "the mean of bottle's 91.7 and tile's 99.9"
    assert with_them["WinClip, published [Q]"][5] == NOTHING, "not found, not guessed"
    assert page.rows("PRO", "4-shot")["AprilGan, published [Q]"][0] == "92.8 ±0.2"
    assert not any("*" in cell for name, cells in with_them.items() if "published" in name for cell in cells)
    own = [row for row in rows if (row["model"], row["shots"]) == ("ours", 0)]
    of_seeds = [mean(row["authors_image_AUROC"] for row in own if row["seed"] == seed) for seed in (0, 1)]
    assert with_them["ours"][0].replace("*", "") == shown(of_seeds)
    assert r"| zero-shot | _AprilGan, published \[Q\]_ | 86.1 |" in markdown


def test_nothing_was_published_of_other_categories(tmp_path: Path) -> None:
    rows = [*grid(), run("ours", 0, category="gear"), run("ours", 0, data="Visa", category="bottle")]
    page, _ = written(table_of(tmp_path, rows))
    assert "published [" not in page.text
    assert "No published numbers are known of these models on this data." in page.text


def test_images_without_masks_have_image_metrics_only(tmp_path: Path) -> None:
    pixels = [metric for metric in (*METRICS, *AUTHORS_METRICS) if "pixel" in metric]
    rows = [run(model, 0, data="Folder", category="", **dict.fromkeys(pixels, "")) for model in CLASSES]
    page, markdown = written(table_of(tmp_path / "without", rows))
    for text in (page.text, markdown):
        assert "no masks" in text
        assert "pixel AUROC" not in text
    assert ["AUROC", "F1-max", "AUPR"] in [row for table in page.tables for row in table], "and no others"
    page, markdown = written(table_of(tmp_path / "with", [run()]))
    assert "no masks" not in page.text + markdown


def test_shards_are_merged_into_one_table(tmp_path: Path) -> None:
    rows = grid()
    rows[3] = failed(model="ours", category="bottle", seed=1)
    table_of(tmp_path, rows[::2], "results-1-of-2.csv")
    table_of(tmp_path, rows[1::2], "results-2-of-2.csv")
    table_of(tmp_path / "whole", rows)
    before = read_results(tmp_path)
    first = written(tmp_path)[0].text
    merged = tmp_path / "merged"
    merged.mkdir()
    (merged / "results.csv").write_bytes((tmp_path / "results.csv").read_bytes())
    pd.testing.assert_frame_equal(read_results(merged), before)
    pd.testing.assert_frame_equal(read_results(tmp_path), before)
    assert written(tmp_path)[0].text == first, "the second report counts no run twice"
    assert "1 of 24 runs failed" in first
    assert not list(tmp_path.glob("*.part"))
    whole = (tmp_path / "whole" / "results.csv").read_bytes()
    written(tmp_path / "whole")
    assert (tmp_path / "whole" / "results.csv").read_bytes() == whole, "a single table stays as it is"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = table_of(tmp_path, [row | {"seconds_per_image": 0.1 + row["seed"]} for row in grid()])
    draw_example(folder / "examples" / "MVTecAD" / "bottle" / "hole-000", {"ours-0-0": (0.9, True)})
    both = [(write_report(folder).read_bytes(), (folder / "report.md").read_bytes()) for _ in range(2)]
    assert both[0] == both[1]


def test_whatever_is_in_the_table_is_text(tmp_path: Path) -> None:
    rows = [row | {"references": "/a|b/<i>.png"} for row in grid([WEIRD, "$x$", "_y"])]
    rows += [run(WEIRD, 0, category=r"$\nothing$")]
    rows += [failed(WEIRD, model=WEIRD, category=WEIRD, seed=7)]
    folder = table_of(tmp_path / WEIRD.replace("/", ""), rows)
    page, markdown = written(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert WEIRD in page.text
    assert "<b>|x" not in html
    assert "<i>.png" not in html
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(bars) == 1, "no text opens a cell of its own"
    assert r"\<b\>\|x" in markdown
    assert "<b>" not in markdown.partition("```bash")[0], "the command, which has the folder's name, is code"


def draw_example(folder: Path, runs: dict[str, tuple[float, bool]], *, anomalous: bool = True, size: int = 64) -> None:
    """A grey picture, hot in its upper left quarter."""
    folder.mkdir(parents=True)
    Image.new("RGB", (size, size), "grey").save(folder / "picture.png")
    hot = np.zeros((size, size), np.uint8)
    hot[: size // 2, : size // 2] = 255
    if anomalous:
        Image.fromarray(hot).save(folder / "truth.png")
    for name, (score, label) in runs.items():
        Image.fromarray(hot).save(folder / f"{name}.png")
        said = {"score": score, "label": label, "anomalous": anomalous}
        (folder / f"{name}.json").write_text(json.dumps(said), encoding="utf-8")


def test_examples_show_heatmaps_scores_and_wrong_labels(tmp_path: Path) -> None:
    examples = table_of(tmp_path, grid()) / "examples" / "MVTecAD"
    first, others = {"ours-0-2": (0.81, True), "theirs-4-0": (0.22, False)}, (3, 4, 10, 11, 12, 13, 14, 100)
    draw_example(examples / "bottle" / "hole-000", first | {f"ours-0-{seed}": (0.33, False) for seed in others})
    draw_example(examples / "tile" / "good-001", {"a-b-0-3": (0.64, True)}, anomalous=False)
    page, _ = written(tmp_path)
    table = next(table for table in page.tables if "ground truth" in table[0])
    assert [cell.split() for cell in table[0][2:]] == [
        ["●", "ours", "zero-shot"],
        ["a-b", "zero-shot"],
        ["■", "theirs", "4-shot"],
    ], "by shots, models in their order, unknown ones last"
    cells = [[" ".join(cell.split()) for cell in row] for row in table[1:]]
    assert cells == [
        ["bottle hole-000", "", "0.81 anomalous", NOTHING, "0.22 normal ✗"],
        ["tile good-001", "no mask", NOTHING, "0.64 anomalous ✗", NOTHING],
    ], "the first seed only; names from the folders"
    pictures = [
        Image.open(BytesIO(b64decode(address.partition(",")[2])))
        for address in page.addresses
        if address.startswith("data:image/jpeg")
    ]
    heatmap = next(picture for picture in pictures[3:] if picture.size == (64, 64))
    assert len(pictures) == 1 + 2 + 1 + 3, "the scale, two pictures, one mask, three heatmaps"
    red, _, blue = heatmap.getpixel((8, 8))
    assert red > blue + 50, "hot"
    red, _, blue = heatmap.getpixel((56, 56))
    assert blue > red + 50, "cold"


def test_at_most_two_dozen_examples_of_all_categories(tmp_path: Path) -> None:
    examples = table_of(tmp_path, grid()) / "examples" / "MVTecAD"
    for number in range(40):
        draw_example(examples / CATEGORIES[0] / f"hole-{number:03d}", {"ours-0-0": (0.9, True)}, size=8)
    draw_example(examples / CATEGORIES[2] / "hole-000", {"ours-0-0": (0.9, True)}, size=8)
    page, _ = written(tmp_path)
    table = next(table for table in page.tables if "ground truth" in table[0])
    assert len(table) == 1 + 24
    assert table[-1][0] == "wood hole-000", "no category crowds out another"
    assert "24 of 41 test images" in page.text


def test_halves_of_examples_do_no_harm(tmp_path: Path) -> None:
    examples = table_of(tmp_path, grid()) / "examples" / "MVTecAD" / "bottle"
    draw_example(examples / "hole-000", {"ours-0-0": (0.9, True), "theirs-0-0": (0.8, True)})
    (examples / "hole-000" / "ours-0-0.json").write_text('{"score": 0.')
    heatmap = examples / "hole-000" / "theirs-0-0.png"
    heatmap.write_bytes(heatmap.read_bytes()[:60])
    draw_example(examples / "hole-001", {"ours-0-0": (0.9, True)})
    (examples / "hole-001" / "picture.png").write_bytes(b"")
    page, _ = written(tmp_path)
    (_, row) = next(table for table in page.tables if "ground truth" in table[0])
    assert [" ".join(cell.split()) for cell in row] == ["bottle hole-000", "", "", "no heatmap 0.80 anomalous"]


def test_without_examples_there_is_no_gallery(tmp_path: Path) -> None:
    page, _ = written(table_of(tmp_path, grid()))
    assert "Examples" not in page.text
    assert "ground truth" not in page.text


def test_costs_are_medians_and_the_most_memory(tmp_path: Path) -> None:
    seconds, memory = (0.5, 0.25, 4.0), (100.0, 900.0, 200.0)
    rows = [
        run("ours", 4, seed, seconds_per_image=second, peak_memory_mb=most, fit_seconds=second * 10, parameters=2.5e6)
        for seed, (second, most) in enumerate(zip(seconds, memory, strict=True))
    ]
    page, markdown = written(table_of(tmp_path, rows))
    (row,) = next(table for table in page.tables if "s per image" in table[0])[1:]
    expected = [f"{median(seconds):g}", "5", NOTHING, "900", "2.5", "3"]
    assert row[3:] == expected
    assert f"| MVTecAD | {' | '.join(expected)} | cpu |" in markdown


def test_what_was_compared_is_told(tmp_path: Path) -> None:
    rows = grid(shots=(4, "full", 0, 16))
    rows.append(run("ours", 4, 0, started="2026-02-03T04:05:06", settings="4567", torch="3"))
    page, markdown = written(table_of(tmp_path / "changed", rows))
    assert page.tables[0][1][1:] == ["0, 4, 16, full", "0, 1", "24 of 24", CLASSES["ours"]]
    for text in (page.text, markdown):
        assert "2026-01-02 03:04 to 2026-02-03 04:05" in text
        assert re.search(r"torch(: |\n?)2\.9; 3 \(differs between runs\)|torch(: |\n?)3; 2\.9 \(differs", text)
        assert "ours was run with different settings" in text
        assert "theirs was run with different settings" not in text
        assert f"anomalib-aprilgan report {tmp_path / 'changed'}" in text
    assert "(3 categories, 30 test images)" in page.text


def test_settings_are_shown_where_they_were_kept(tmp_path: Path) -> None:
    folder = table_of(tmp_path, grid())
    assert "Settings of models" not in written(folder)[0].text
    (folder / "settings").mkdir()
    (folder / "settings" / "0123.txt").write_text('{"image_size": 518}', encoding="utf-8")
    assert '{"image_size": 518}' in written(folder)[0].text


def test_models_with_the_same_references_share_a_line(tmp_path: Path) -> None:
    same = [run(model, 2, references="data/good/1.png;data/good/2.png") for model in CLASSES]
    page, markdown = written(table_of(tmp_path / "same", same))
    (row,) = next(table for table in page.tables if "folder" in table[0])[1:]
    assert row == ["bottle", "2-shot", "0", "1.png, 2.png", "data/good", "ours, theirs"]
    assert "all models had the same ones" in " ".join(page.text.split())
    same[1]["references"] = "data/good/1.png;data/other/2.png"
    other, other_markdown = written(table_of(tmp_path / "others", same))
    assert "Models had different ones" in other.text
    (_, row) = next(table for table in other.tables if "folder" in table[0])[1:]
    assert row[3:5] == ["data/good/1.png, data/other/2.png", ""]
    assert "Models had different ones" not in page.text
    assert "Models had different ones" in other_markdown
    assert "all models had the same ones" in markdown


def titles(page: Page) -> list[str]:
    return re.findall(r"(?:Image|Pixel) AUROC, [\w -]+", page.text)


def test_plots_are_drawn_of_what_there_is(tmp_path: Path) -> None:
    times = [row | {"seconds_per_image": 0.5} for row in grid(shots=(0, 2, 4))]
    kinds = ("by reference images", "by time", "zero-shot", "4-shot", "by reference images")
    page, _ = written(table_of(tmp_path / "all", times))
    assert titles(page) == [f"{level} AUROC, {kind}" for kind in kinds for level in ("Image", "Pixel")]
    page, _ = written(table_of(tmp_path / "one", [run("ours", 4)]))
    assert titles(page) == [], "one number makes no plot"
    page, _ = written(table_of(tmp_path / "shared", [*grid(shots=(2,)), *grid(["ours"], shots=(4,))]))
    assert "Image AUROC, 2-shot" in titles(page)
    assert "Image AUROC, 4-shot" not in titles(page), "there is nobody to compare with"


def test_a_model_keeps_its_colour_and_published_points_are_hollow(tmp_path: Path) -> None:
    runs = with_derived(read_results(table_of(tmp_path, [row | {"seconds_per_image": 0.5} for row in grid()])))
    styles = styles_of(CLASSES)
    assert len(set(styles_of(map(str, range(56))).values())) == 56
    means = mean_rows(runs, AUTHORS)
    drawn = metric_by_shots(means, "authors_image_AUROC", styles)
    assert drawn is not None
    colours = [style.colour.lower() for style in styles.values()]
    others = [
        drawn,
        metric_by_seconds(means, "authors_image_AUROC", styles),
        bars_by_category(category_rows(runs, AUTHORS, "4"), "authors_image_AUROC", styles),
    ]
    assert all(colour in (svg or "") for colour in colours for svg in others)
    for rows in means.values():
        rows.extend(published_mean_rows(rows, "MVTecAD", CATEGORIES))
    with_published = metric_by_shots(means, "authors_image_AUROC", styles) or ""
    hollow = r'<use [^>]*style="fill-opacity: 0; stroke: (#\w+)'
    assert not re.findall(hollow, drawn)
    assert sorted(re.findall(hollow, with_published)) == sorted(colours * 2), "for 0 and 4 shots each, [Q] only"


@pytest.mark.parametrize("rows", [None, []])
def test_a_folder_without_results_is_refused(rows: list[Any] | None, tmp_path: Path) -> None:
    if rows is not None:
        append_row(tmp_path / "results.csv", run())
        lines = (tmp_path / "results.csv").read_text().splitlines(keepends=True)
        (tmp_path / "results.csv").write_text(lines[0])
    with pytest.raises(
        ValueError, match=rf"results\.csv.*there is none in {re.escape(str(tmp_path))}\. Pass the folder"
    ):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


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
    names = ("published_figures", "published_rows", "protocols", "tables", "records", "plots", "gallery", "sections")
    for name in (*names, "report"):
        path = Path(comparison.__file__).with_name(f"{name}.py")
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert not {"torch", "open_clip", "lightning"} & {str(module).partition(".")[0] for module in imported}, name
