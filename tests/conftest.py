import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import ip_address

import httpx
import pytest

from tests.support import entry_points
from tests.support.virtual_time import VirtualTimeLoop


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--url", help="test the contract against the service that runs at URL, and nothing else"
    )
    parser.addoption("--scale", type=int, default=1, help="multiply the stress by SCALE")


def pytest_configure(config: pytest.Config) -> None:
    url = config.getoption("url")
    try:
        if not url or is_loopback(httpx.URL(url).host):
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                del os.environ[name]
        if url:
            httpx.get(url.removesuffix("/test"), timeout=30)
    except (httpx.InvalidURL, httpx.TransportError, ImportError, ValueError) as error:
        raise pytest.UsageError(f"--url {url}: {error}") from None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine, for which no proxy is used."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry_point" in metafunc.fixturenames:
        url = metafunc.config.getoption("url")
        opened = (
            [pytest.param(partial(entry_points.running, url), id="url")]
            if url
            else entry_points.LOCAL
        )
        metafunc.parametrize("entry_point", opened, indirect=True, scope="module")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run the suite in two processes, since most tests wait; a part of it, or `--url`, in one."""
    return 0 if config.getoption("url") or config.getoption("file_or_dir", []) else 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("url"):
        items[:] = [item for item in items if "entry_point" in getattr(item, "fixturenames", ())]
    for item in items:
        waits = item.path.stem in ("test_contract", "test_acceptance")
        item.add_marker(pytest.mark.xdist_group("waits" if waits else "rest"))
    # The acceptance, whose turns are long, goes beside the stress test.
    items.sort(key=lambda item: item.path.stem == "test_acceptance")


@pytest.fixture(scope="module")
def entry_point(request: pytest.FixtureRequest) -> Iterator[entry_points.EntryPoint]:
    with request.param() as opened:
        yield opened


@pytest.fixture
def scale(pytestconfig: pytest.Config) -> int:
    scale: int = pytestconfig.getoption("scale")
    return scale


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualTimeLoop}
    return {"asyncio": asyncio.new_event_loop}
