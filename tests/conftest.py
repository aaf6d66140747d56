"""Fixtures that several test modules share, and limits that do not depend on the speed of the machine."""

import functools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sentiment_engine.data import etl
from sentiment_engine.local.aws import direct_hosts, stray_variables
from sentiment_engine.local.cloud import LocalCloud

pytest_plugins = ("tests.doubles.engine", "tests.doubles.visitor", "tests.doubles.page_service")
ci = {"derandomize": True, "database": None} if "CI" in os.environ else {}
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], **ci)
settings.load_profile("tests")


LONGEST = ("test_series.py", "test_cloud.py", "test_openapi.py", "test_serving_memory.py", "test_page.py")


def pytest_collection_modifyitems(items):
    "Start with the files that take minutes, so that none of them runs alone at the end."
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    "Fail a test that waits for ever, and show where it waits."
    limit = 3600 if item.get_closest_marker("slow") else 900  # seconds, with its fixtures
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"{item.nodeid} takes longer than {limit} seconds"))
    signal.alarm(limit)
    try:
        return (yield)
    finally:
        signal.alarm(0)


# The tests stay on this machine, even if the shell has settings for AWS or a proxy.
for name in (*stray_variables(os.environ), "ALL_PROXY", "all_proxy"):
    os.environ.pop(name, None)
os.environ["no_proxy"] = os.environ["NO_PROXY"] = direct_hosts(os.environ)


class TestCloud(LocalCloud):
    "A local cloud with its boto3 clients."

    __test__ = False

    @functools.cache  # noqa: B019 -- as long-lived as the session
    def client(self, service: str):
        "Return a boto3 client of this cloud."
        return self.root_client(service)


@pytest.fixture(scope="session")
def cloud(tmp_path_factory) -> Iterator[TestCloud]:
    "A local cloud for this test session, on free ports and in a separate folder."
    with TestCloud(tmp_path_factory.mktemp("local-cloud"), port=0, site_port=0) as running:
        yield running


@pytest.fixture(scope="session")
def spark_classes(tmp_path_factory) -> Path:
    "A folder on the class path of `spark`."
    return tmp_path_factory.mktemp("classes")


@pytest.fixture(scope="session")
def spark(spark_classes):
    "The only Spark of this test session, because the process's first Java machine fixes the class path."
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(etl.ONE_MACHINE, "spark.driver.extraClassPath", str(spark_classes))
        session = etl.start_spark("tests")
    session.conf.set("spark.sql.shuffle.partitions", "3")  # small data, so shorter waits
    yield session
    session.stop()
