"""A daemon over the fake device, shared by the tests of a module that ask for `daemon` and define none."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from support.daemon import Running, running
from support.fake_model import fake_model, fake_settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("daemon")
    model = fake_model(folder)
    async with running(folder, model, fake=fake_settings(model)) as daemon:
        yield daemon


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who shares a daemon runs in its event loop."""
    in_its_loop = pytest.mark.asyncio(loop_scope="module")
    for item in items:
        if isinstance(item, pytest.Function) and pytest_asyncio.is_async_test(item) and _shares(item):
            item.add_marker(in_its_loop, append=False)


def _shares(item: pytest.Function) -> bool:
    """Its `daemon` is the one of this file, not of its module."""
    definitions = item._fixtureinfo.name2fixturedefs.get("daemon", ())
    return bool(definitions) and not definitions[-1].baseid.endswith(".py")
