"""Machines for the tests of this folder: see `machine`, `image` and `site`.

Where no systemd can be booted the tests are skipped with the reason; with TESTS_NEED_SYSTEMD=1 in
the environment they fail instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import image
from tests.systemd.machine import Machine, booted, why_not
from tests.systemd.site import Nvr, Site, Store, fresh


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.process)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run's, for all processes that share its tests."""
    if reason := why_not() or image.why_not():
        if os.environ.get("TESTS_NEED_SYSTEMD"):
            pytest.fail(f"systemd cannot be booted: {reason}")
        pytest.skip(f"systemd cannot be booted: {reason}")
    return image.shared_folder(tmp_path_factory.getbasetemp()) / "systemd"


@pytest.fixture(scope="session")
def cache(request: pytest.FixtureRequest, shared: Path) -> Path:
    """A folder that outlives the run, where pytest keeps one."""
    kept = getattr(request.config, "cache", None)
    return shared if kept is None else Path(kept.mkdir("systemd"))


@pytest.fixture(scope="session")
def installed(cache: Path, shared: Path) -> Path:
    """The image of a machine with the service installed by `deploy/install.sh`."""
    return image.installed(cache, shared)


@pytest.fixture(scope="module")
def machine(installed: Path) -> Iterator[Machine]:
    with booted([installed]) as machine:
        yield machine


@pytest.fixture
def site(machine: Machine) -> Iterator[Site]:
    with fresh(machine) as site:
        yield site


@pytest.fixture
def nvr(site: Site) -> Iterator[Nvr]:
    """A simulated NVR with two clips of one camera, Porch."""
    with site.nvr("--cameras", "1", "--clips", "2") as nvr:
        yield nvr


@pytest.fixture
def store(site: Site) -> Iterator[Store]:
    with site.store() as store:
        yield store
