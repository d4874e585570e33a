"""Servers that the tests of one session share."""

import pytest

from tests import servers
from tests.chat_page import browser, open_page, scripted  # noqa: F401


@pytest.fixture(scope='session')
def served_run(tmp_path_factory):
    """A run directory with small random weights; leave it alone."""
    return servers.make_run(tmp_path_factory.mktemp('served') / 'tiny')


@pytest.fixture(scope='session')
def server(served_run):
    """A server of it with two slots and room for four more to wait."""
    with servers.serving(served_run, '--slots=2', '--queue=4') as server:
        yield server
