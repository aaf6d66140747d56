"""The figures in the documents match the committed results, and state where and when they were measured."""

import json
import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from benchmarks import figures

PAGE = figures.PAGE.read_text(encoding="utf-8")
README = (figures.ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = sorted(figures.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", figures.BLOCKS)
def test_the_page_shows_the_measured_figures(name):
    assert f"<!-- figures: {name} -->\n{figures.block(name)}\n<!-- end: {name} -->" in PAGE


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_its_processor_date_and_versions(path):
    machine = json.loads(path.read_text())["machine"]
    assert machine["cpu"] and machine["cores"] > 0 and machine["versions"]["python"]
    assert date(2026, 1, 1) <= date.fromisoformat(machine["date"]) <= datetime.now(UTC).date()


def test_no_speed_figure_is_written_by_hand():
    by_hand = re.sub(r"<!-- figures: (\w+) -->.*?<!-- end: \1 -->", "", PAGE, flags=re.DOTALL)
    speeds = r"\d[\d.,]* ?(?:ms|seconds|s\b|GB|times|x\b|(?:texts|reviews) a second)"
    assert re.findall(speeds, by_hand) == re.findall(speeds.replace("|GB", ""), README) == []


def test_a_changed_result_changes_the_table():
    result = json.loads((figures.RESULTS / "inference.json").read_text())
    before = figures.inference(result)
    result["models"]["distilbert"]["medians"]["ours"]["p50 60"] = 123.4
    assert "| 123 ms |" in figures.inference(result) and "| 123 ms |" not in before


def test_a_missing_placeholder_for_figures_is_reported():
    with pytest.raises(ValueError, match="needs <!-- figures: etl -->"):
        figures.filled("no place")


def test_the_figures_in_the_readme_match_the_released_model():
    metrics = json.loads(Path(figures.ROOT, "models/released/metrics.json").read_text())
    share = f"{metrics['accuracy']:.1%}".replace("%", " %")
    assert f"classifies {share} of {metrics['rows']:,} unseen texts correctly" in README
