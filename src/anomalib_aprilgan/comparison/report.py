# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The report of a comparison: one HTML file that needs no other file, and one Markdown file."""

import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import pandas as pd
from jinja2 import pass_eval_context
from jinja2.nodes import EvalContext
from markupsafe import Markup
from pandas.io.formats.style import Styler

from anomalib_aprilgan.comparison import summaries
from anomalib_aprilgan.comparison.folder import EXAMPLES
from anomalib_aprilgan.comparison.gallery import read_gallery
from anomalib_aprilgan.comparison.plots import Style, bars_by_category, metric_by_seconds, metric_by_shots, styles_of
from anomalib_aprilgan.comparison.results import FAILED, read_runs, run_files, write_table
from anomalib_aprilgan.comparison.summaries import Table, in_words, metric_table
from anomalib_aprilgan.comparison.tables import (
    ANOMALIB,
    AUTHORS,
    Averages,
    Metric,
    add_published,
    average,
    done_of,
    measured_metrics,
    prepare,
)
from anomalib_aprilgan.files.paths import checked_path
from anomalib_aprilgan.files.whole_files import write_file
from anomalib_aprilgan.pages.rendering import make_environment, scale

__all__ = ["write_report"]


@dataclass(frozen=True)
class Plot:
    """A plot: its title and a data URL."""

    title: str
    address: str


@dataclass(frozen=True)
class Results:
    """Results on a data set by one protocol.

    Attributes:
        is_authors: Whether it is the authors' protocol; else anomalib's.
        has_published: Whether there are published figures.
        means: Means over categories, by shots.
        plots: Plots of the means.
        bars: Plots of the categories.
        categories: Tables of the categories, by shots; empty if there is only one category.
    """

    is_authors: bool
    has_published: bool
    means: Table
    plots: list[Plot]
    bars: list[Plot]
    categories: dict[str, Table]


def write_report(folder: str | Path) -> Path:
    """Write ``results.csv``, ``report.html`` and ``report.md`` from the run files and examples in a folder.

    Args:
        folder: Folder of the comparison.

    Returns:
        The HTML file.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If the folder holds no results, or a damaged run file.
    """
    folder = checked_path(folder, "folder")
    while True:
        found = run_files(folder)
        written = _write_report(folder)
        if run_files(folder) == found:  # else another process, which may have written its report before this one
            return written


def _write_report(folder: Path) -> Path:
    results = read_runs(folder)
    if results.empty:
        msg = (
            f"Expected argument `folder` to be the folder of a comparison, but {str(folder)!r} holds no finished run. "
            "Pass the folder that the comparison writes to, when its first run has ended."
        )
        raise ValueError(msg)
    write_table(folder, results)
    runs = prepare(results)
    styles = styles_of(runs["model"].cat.categories)
    settings = runs.drop_duplicates(["model", "data", "settings"]).sort_values(["model", "data"])
    digests = done_of(runs).groupby(["model", "data"], observed=True)["settings"].nunique()
    by_data = dict(list(runs.groupby("data", observed=True)))
    titles = summaries.data_titles(runs)
    named = runs.assign(data=runs["data"].cat.rename_categories(titles))
    references, same_references = summaries.reference_table(named)
    content = {
        "title": f"{', '.join(titles.values())}: comparison of {len(styles)} model{'s' * (len(styles) > 1)}",
        "titles": titles,
        "command": f"anomalib-aprilgan report {_quoted(str(folder))}",
        "runs": len(runs),
        "started": [time[:16].replace("T", " ") for time in sorted(filter(None, runs["started"]))],
        "styles": styles,
        "markers": summaries.marker_classes(styles),
        "models": summaries.model_table(runs),
        "changed": [*dict.fromkeys(digests[digests > 1].index.get_level_values("model"))],
        "data_sets": {data: _describe_data(of_data) for data, of_data in by_data.items()},
        "environment": summaries.environment(runs),
        "settings": settings[settings["arguments"] != ""].to_dict("records"),
        "sections": {data: _results_by_protocol(of_data, styles) for data, of_data in by_data.items()},
        "without_masks": {data for data, of_data in by_data.items() if _has_image_metrics_only(of_data)},
        "gallery": read_gallery(folder / EXAMPLES, runs, titles),
        "scale": scale(),
        "costs": summaries.cost_table(named),
        "failures": summaries.failure_table(named),
        "failed": int((runs["status"] == FAILED).sum()),
        "references": references,
        "same_references": same_references,
    }
    environment = make_environment(finalize=_escape_markdown)
    environment.filters |= {
        "in_words": in_words,
        "as_html": partial(_as_html, numbers=count()),
        "as_markdown": _as_markdown,
    }
    write_file(folder / "report.md", environment.get_template("comparison/report.md.jinja").render(content))
    return write_file(folder / "report.html", environment.get_template("comparison/report.html.jinja").render(content))


def _quoted(text: str) -> str:
    """Quote a text for bash, on one line: a line break would end the block of code that the command is in."""
    if not re.search(r"[\x00-\x1f\x7f]", text):
        return shlex.quote(text)
    escaped = re.sub(r"[\x00-\x1f\x7f\\']", lambda character: f"\\x{ord(character[0]):02x}", text)
    return f"$'{escaped}'"


def _describe_data(runs: pd.DataFrame) -> dict[str, object]:
    """Return the categories of a data set and the number of its test images, 0 if it is unknown."""
    images = runs.groupby("category", observed=True)["images"].median().sum()
    return {"categories": list(runs["category"].unique().sort_values()), "images": int(images)}


def _has_image_metrics_only(runs: pd.DataFrame) -> bool:
    return {metric.level for metric in measured_metrics(runs, (*ANOMALIB, *AUTHORS))} == {"image"}


def _results_by_protocol(runs: pd.DataFrame, styles: Mapping[str, Style]) -> list[Results]:
    """Average the runs on a data set, by each protocol that there are values of."""
    measured = ((protocol, measured_metrics(runs, protocol)) for protocol in (ANOMALIB, AUTHORS))
    return [
        _results(runs, metrics, styles, is_authors=protocol is AUTHORS) for protocol, metrics in measured if metrics
    ]


def _results(runs: pd.DataFrame, metrics: list[Metric], styles: Mapping[str, Style], *, is_authors: bool) -> Results:
    means = average(runs, metrics, "shots")
    by_shots = dict(list(runs.groupby("shots", observed=True)))
    categories = {shots: average(part, metrics, "category") for shots, part in by_shots.items()}
    if is_authors:
        means = add_published(means, runs, "shots")
        categories = {shots: add_published(each, by_shots[shots], "category") for shots, each in categories.items()}
    aurocs = [metric for metric in metrics if metric.title == "AUROC"]
    plots = [(metric, "by reference images", metric_by_shots(means.cells, metric.column, styles)) for metric in aurocs]
    bars = []
    if not is_authors:
        plots += [(metric, "by time", metric_by_seconds(means.cells, metric.column, styles)) for metric in aurocs]
        bars = [
            (metric, in_words(shots), bars_by_category(categories[shots].cells, metric.column, styles))
            for shots in _shots_to_draw(means)
            for metric in aurocs
        ]
    return Results(
        is_authors=is_authors,
        has_published=bool((means.rows["source"] != "").any()),
        means=metric_table(means, metrics, "shots", styles),
        plots=_plots(plots),
        bars=_plots(bars),
        categories={
            shots: metric_table(each, metrics, "category", styles)
            for shots, each in categories.items()
            if len(runs["category"].unique()) > 1
        },
    )


def _shots_to_draw(means: Averages) -> list[str]:
    """Choose zero-shot, and the largest number of shots that several models have (or one, if there is only one)."""
    models = means.rows[means.rows["runs"] > 0].groupby("group", observed=True)["model"].nunique()
    largest = models[models >= min(2, models.max())].index[-1]
    return [shots for shots in models.index if shots in {"0", largest}]


def _plots(drawn: Iterable[tuple[Metric, str, str | None]]) -> list[Plot]:
    """Give the plots titles and data URLs; leave out those without values."""
    return [
        Plot(
            title=f"{metric.level.title()} {metric.title}, {what}",
            address=f"data:image/svg+xml;base64,{b64encode(svg.encode('utf-8', 'backslashreplace')).decode()}",
        )
        for metric, what, svg in drawn
        if svg is not None
    ]


def _as_html(table: Table, numbers: Iterable[int]) -> Markup:
    """Write a table as HTML; all texts are escaped."""
    levels = table.cells.columns.get_level_values(0)
    left = {column: [{"selector": "", "props": "text-align: left"}] for column in table.left}
    borders = {
        column: [{"selector": "", "props": "border-left: 1px solid var(--line)"}]
        for column, level, previous in zip(table.cells.columns[1:], levels[1:], levels, strict=False)
        if table.cells.columns.nlevels > 1 and level != previous
    }
    styler = Styler(table.cells, uuid=str(next(iter(numbers))), cell_ids=False).hide(axis="index")
    styler = styler.format(escape="html").format_index(escape="html", axis=1).set_td_classes(table.classes)
    folded = [column for column in table.cells if table.classes[column].str.contains("folded").any()]
    styler = styler.format(Markup("<details><summary><span>{}</span></summary></details>").format, subset=folded)
    html = styler.set_table_styles({**left, **borders}).to_html()
    return Markup('<div class="wide" tabindex="0">{}</div>').format(Markup(html))  # noqa: S704  # escaped by the Styler


def _as_markdown(table: Table) -> Markup:
    """Write a table as Markdown; all texts are escaped."""
    columns = [" ".join(filter(None, [column] if isinstance(column, str) else column)) for column in table.cells]
    rules = ["---" if column in table.left else "---:" for column in table.cells]
    texts = table.cells.map(_escaped)
    for name, pattern, marked in (("best", r"^[\d.]+", r"**\g<0>**"), ("hollow", r"^.*$", r"_\g<0>_")):
        has_class = table.classes.map(lambda names, name=name: name in names.split())
        texts = texts.mask(has_class, texts.replace(pattern, marked, regex=True))
    lines = [map(_escaped, columns), rules, *texts.itertuples(index=False, name=None)]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))  # noqa: S704


@pass_eval_context
def _escape_markdown(context: EvalContext, value: object) -> object:
    """Escape texts in Markdown files; in HTML files, Jinja escapes them."""
    return value if context.autoescape or isinstance(value, Markup) or not isinstance(value, str) else _escaped(value)


def _escaped(text: str) -> str:
    """Put a text on one line, and escape the characters that Markdown, its tables and HTML interpret."""
    return re.sub(r"[\\`*\[\]<>|~#&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", " ".join(text.splitlines()))
