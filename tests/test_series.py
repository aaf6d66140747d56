"The whole series by papermill on a small sample: deployed, visited, found up to date, torn down twice."

import os
from pathlib import Path

import httpx
import pytest
from deploy import Stamps, deploy, outdated, plan
from smoke import Visit, sleep, use, wake
from teardown import teardown

from sentiment_engine.local.cloud import LocalCloud
from sentiment_engine.settings import connect, foundation_stack, settings_from

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"rows": 1_200, "sample_rows": 800}


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    "A local cloud of its own with the whole series deployed to it: (cloud, stack outputs)."
    state = tmp_path_factory.mktemp("series")
    with LocalCloud(state, port=0, site_port=0) as cloud, pytest.MonkeyPatch.context() as patch:
        for name, value in cloud.environment.items():
            patch.setenv(name, value)
        yield cloud, deploy("local", **SMALL)


def test_page_is_published(series):
    cloud, outputs = series
    page = httpx.get(cloud.site_url)
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    assert httpx.get(f"{cloud.site_url.rstrip('/')}/config.json").json()["apiUrl"] == outputs["ApiUrl"]


def test_one_visit(series):
    cloud, outputs = series
    visit = Visit(cloud, outputs["ApiUrl"])
    for act in (wake, use, sleep):
        act(visit)
    assert visit.step_number == 12


def test_nothing_is_done_twice(series):
    phases = plan({"target": "local"} | SMALL)
    stamps = Stamps(connect("local"), foundation_stack(settings_from(os.environ))).read()
    assert outdated(phases, stamps) == []
    other = plan({"target": "local", "rows": 1_300})
    assert outdated(other, stamps)[0].title.startswith("01")


def test_teardown_leaves_nothing_and_can_be_repeated(series):
    assert teardown("local")
    assert teardown("local") == []
    assert connect("local").client("s3").list_buckets()["Buckets"] == []
