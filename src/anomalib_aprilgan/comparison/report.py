# Copyright (C) 2026 The anomalib-aprilgan authors
# SPDX-License-Identifier: Apache-2.0

"""The report of a comparison: from its folder alone to one HTML file with everything in it, and one in Markdown."""

import re
import shlex
from pathlib import Path
from uuid import uuid4

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_eval_context, select_autoescape
from jinja2.nodes import EvalContext
from markupsafe import Markup

from anomalib_aprilgan.comparison import records
from anomalib_aprilgan.comparison.gallery import read_gallery, scale
from anomalib_aprilgan.comparison.plots import styles_of
from anomalib_aprilgan.comparison.protocols import with_derived
from anomalib_aprilgan.comparison.results import read_results, results_file
from anomalib_aprilgan.comparison.sections import write_sections
from anomalib_aprilgan.comparison.tables import in_words

__all__ = ["write_report"]

NOTHING = "–"  # noqa: RUF001  # a dash


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` and ``report.md`` from the results and examples in a folder.

    Where several processes wrote tables of their own, all rows go to ``results.csv`` as well.

    Args:
        folder: Folder of the comparison.

    Returns:
        The HTML file.

    Raises:
        ValueError: If the folder holds no results.
    """
    folder = Path(folder)
    results = read_results(folder)
    if results.empty:
        msg = (
            "Expected argument `folder` to be the folder of a comparison, with at least one run in results.csv (or in "
            f"results-1-of-4.csv and the like), but there is none in {folder}. Pass the folder that the comparison "
            "writes to, when its first run has ended."
        )
        raise ValueError(msg)
    if any(folder.glob("results-*-of-*.csv")):
        _write(results_file(folder), results.to_csv(index=False, lineterminator="\n"))
    models, drawn = records.models(results), records.references(results)
    styles = styles_of(model.name for model in models)
    content = {
        "name": folder.resolve().name,
        "command": f"anomalib-aprilgan report {shlex.quote(str(folder))}",
        "runs": len(results),
        "failures": records.failures(results),
        "started": sorted(filter(None, results["started"])),
        "models": models,
        "styles": styles,
        "data_sets": records.data_sets(results),
        "surroundings": records.surroundings(results),
        "sections": write_sections(with_derived(results), styles),
        "gallery": read_gallery(folder / "examples", styles),
        "scale": scale(),
        "costs": records.costs(results),
        "references": drawn,
        "same_references": len({(one.data, one.category, one.shots, one.seed) for one in drawn}) == len(drawn),
        "settings": {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("settings/*.txt"))},
    }
    environment = Environment(
        loader=PackageLoader("anomalib_aprilgan.comparison", "."),
        autoescape=select_autoescape(["html.jinja"]),
        finalize=_escaped_in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "digits": _digits, "in_words": in_words}
    _write(folder / "report.md", environment.get_template("report.md.jinja").render(content))
    return _write(folder / "report.html", environment.get_template("report.html.jinja").render(content))


@pass_eval_context
def _escaped_in_markdown(context: EvalContext, value: object) -> object:
    """Escape what Markdown, its tables and the HTML in it would understand; HTML itself is left to Jinja."""
    if context.autoescape or isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"[\\`*\[\]<>|~#&]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", value)


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"


def _digits(value: float | None) -> str:
    """A measure with as many digits as one wants to read."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


def _write(path: Path, text: str) -> Path:
    """Write a file in one step, whoever else writes it at the same time."""
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.part")
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)
