"""One server of each kind for each session and worker, and what becomes of the matrix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import matrix
import pytest
from choice import BASE, CHOSEN, WANTED, make
from features import absence
from post import Post
from server import MailServer

import fastsmtp


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        metafunc.parametrize("server", CHOSEN, indirect=True, scope="session")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all tests of a server to one worker.  (xdist's loadgroup needs pytest below 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByServer(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = re.search(r"\[(\w+)", nodeid)
            return found[1] if found else nodeid

    return ByServer(config, log)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[MailServer]:
    """A server that runs."""
    running = make(request.param)
    try:
        running.start()
        yield running
    finally:
        running.close()


@pytest.fixture(scope="session")
def the_post(server: MailServer) -> Iterator[Post]:
    post = Post(server)
    yield post
    assert post.strays() == [], "what nobody was told of has arrived"


@pytest.fixture
def post(the_post: Post, request: pytest.FixtureRequest) -> Post:
    """The letters to the server, and its mailboxes."""
    properties = request.node.user_properties
    the_post.compared = lambda copies, octets: properties.append(
        ("compared", [[the_post.server.name, the_post.server.version], copies, octets])
    )
    return the_post


# -- the matrix ---------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "feature(title, *needs): a row of docs/servers.md, and what a server must have"
    )
    codec = fastsmtp.implementation()
    if WANTED and not hasattr(config, "workerinput"):
        config.pluginmanager.register(matrix.Recorder(codec + "-newest" * (BASE != "/")))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Note the cell of the matrix that a test is for; call it if the server has what it needs."""
    marker = pyfuncitem.get_closest_marker("feature")
    if marker is None:
        return None
    title, *needs = (text.format(**pyfuncitem.callspec.params) for text in marker.args)
    post, kind = pyfuncitem.funcargs["post"], pyfuncitem.funcargs["kind"]
    tried = absence(post.server, post.offered, kind, *needs) is None
    server = [post.server.name, post.server.version]
    pyfuncitem.user_properties.append(("cell", [server, _place(pyfuncitem), title, kind, tried]))
    return None if tried else True


def _place(test: pytest.Function) -> list[int | str]:
    """Return what puts the rows of the matrix in the order of the tests."""
    indices = test.callspec.indices
    others = [indices[name] for name in sorted(indices) if name not in ("server", "kind")]
    return [test.path.name, test.function.__code__.co_firstlineno, *others]
