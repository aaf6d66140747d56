"The whole series with papermill on a small sample: deployed, visited, found up to date, torn down twice."

import json
import os
import re

import httpx
import papermill
import pytest
from playwright.sync_api import expect

from infra_scripts.demo import told_model, told_reviews
from sentiment_engine.data.reviews import write_reviews
from sentiment_engine.deploy.endpoint import current_model
from sentiment_engine.deploy.phases import Stamps, deploy, outdated, plan, sources_fingerprint
from sentiment_engine.deploy.stacks import stack_outputs
from sentiment_engine.deploy.teardown import teardown
from sentiment_engine.deploy.visit import PRAISE, ask_asleep, local_visit, sleep, use, wake
from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.settings import connect, foundation_stack, settings_from
from tests import ROOT
from tests.doubles.chromium import open_browser
from tests.doubles.file_server import serving

NOTEBOOKS = ROOT / "nbs"
SMALL = {"rows": 1_200, "sample_rows": 800}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    "A separate local cloud with the whole series deployed: (cloud, stack outputs)."
    state = tmp_path_factory.mktemp("series")
    with LocalCloud(state, port=0, site_port=0) as cloud, pytest.MonkeyPatch.context() as patch:
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        yield cloud, deploy("local", **SMALL)


def lake_of() -> str:
    stack = foundation_stack(settings_from(os.environ))
    return stack_outputs(connect("local").client("cloudformation"), stack)["LakeBucket"]


def test_the_page_is_published(series):
    cloud, outputs = series
    page = httpx.get(cloud.site_url)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{cloud.site_url}config.json").json()["provider"] == "Textbelt"
    through, directly = (httpx.get(f"{api}/status").json() for api in (f"{cloud.site_url}api", outputs["ApiUrl"]))
    assert through["state"] == directly["state"]


def test_a_visit_runs_through_every_step(series):
    cloud, outputs = series
    visit = local_visit(cloud, outputs["ApiUrl"])
    ask_asleep(visit)
    wake(visit)
    use(visit)
    sleep(visit, connect("local").client("sagemaker"), settings_from(os.environ).prefix)
    assert visit.step_number == 18


@pytest.mark.browser
def test_the_page_answers_before_the_model_is_started(series):
    cloud, _ = series
    with open_browser() as browser:
        page = browser.new_page()
        page.goto(cloud.site_url)
        expect(page.locator("html")).to_have_attribute("data-view", "asleep", timeout=60_000)
        page.locator("#review").fill(PRAISE)
        page.locator("#read").click()
        expect(page.locator("#answer .by")).to_have_text("Answered by the small model", timeout=60_000)
        expect(page.locator("#answer .verdict strong")).to_have_text("Positive")


def test_the_visit_in_the_notebook_leaves_the_model_asleep(series, tmp_path):
    "Including two at once: one endpoint, and none afterwards."
    _, outputs = series
    played = tmp_path / "played.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / "05_serverless_backend.ipynb", played, cwd=NOTEBOOKS, kernel_name="python3", progress_bar=False
    )
    cells = json.loads(played.read_text())["cells"]
    said = "".join("".join(each.get("text", "")) for cell in cells for each in cell.get("outputs", []))
    assert "in service after" in said and "SMS: Hi Ada" in said and "in 1 run\n1 endpoint\n0 endpoints" in said
    status = httpx.get(f"{outputs['ApiUrl']}/status").json()
    assert status["state"] == "STOPPED" and status["typicalSeconds"]["starts"] == 3  # the earlier visit, and two here
    ours = connect("local").client("sagemaker").list_endpoints(NameContains="sentiment-engine-")
    assert ours["Endpoints"] == []


def test_unchanged_phases_are_not_repeated(series):
    phases = plan({"target": "local"} | SMALL)
    stamps = Stamps(connect("local"), foundation_stack(settings_from(os.environ))).read()
    assert outdated(phases, stamps) == []
    other = plan({"target": "local", "rows": 1_300})
    assert outdated(other, stamps)[0].title.startswith("01")


def test_a_category_is_fetched_from_its_source(series, tmp_path):
    write_reviews(tmp_path, 4_000, seed=3)
    with serving() as source:
        source.files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        deploy("local", only="01", categories="Books, Electronics", source=source.address)
    report = json.load(connect("local").client("s3").get_object(Bucket=lake_of(), Key="reports/etl.json")["Body"])
    assert set(report["by_category"]) == {"Books", "Electronics"} and report["kept"] > 300


def test_the_demo_reports_omitted_rows(series):
    told = told_reviews(lake_of())
    kept, read, *left_out = (int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", told))
    assert 0 < kept == read - sum(left_out) and left_out, told


def test_the_better_model_is_published(series):
    "After so few generated reviews the candidate fails the suite; the champion passes it."
    model = current_model(connect("local").client("ssm"), settings_from(os.environ))
    assert "/models/released/" in model.artifact and 0.9 < model.accuracy < 1
    assert told_model(model).startswith(f"you will wake the released model: accuracy {model.accuracy:.3f}")
    deploy("local", only="04", deploy_model="candidate")
    model = current_model(connect("local").client("ssm"), settings_from(os.environ))
    assert "/models/released/" not in model.artifact
    assert told_model(model).startswith("you will wake the model trained here:")


def test_a_changed_release_is_deployed_again(monkeypatch, tmp_path):
    files = (
        "models/released/model.onnx",
        "sentiment_engine/model/behaviour_suite.toml",
        "nbs/04_endpoint_deployment.ipynb",
    )
    monkeypatch.setattr("sentiment_engine.deploy.phases.ROOT", tmp_path)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("first")
    seen = {sources_fingerprint()}
    for file in files:
        (tmp_path / file).write_text("another")
        seen.add(sources_fingerprint())
    assert len(seen) == 4


def test_a_teardown_leaves_nothing_and_can_be_repeated(series):
    assert teardown("local")
    assert teardown("local") == []
    assert connect("local").client("s3").list_buckets()["Buckets"] == []


def test_the_released_model_needs_no_training(tmp_path, monkeypatch):
    with LocalCloud(tmp_path, port=0, site_port=0) as cloud:
        for name, value in cloud.environment.items():
            monkeypatch.setenv(name, value)
        outputs = deploy("local", deploy_model="released")
        assert httpx.get(cloud.site_url).status_code == 200
        assert connect("local").client("sagemaker").list_training_jobs()["TrainingJobSummaries"] == []
        visit = local_visit(cloud, outputs["ApiUrl"])
        for act in (wake, use):
            act(visit)
