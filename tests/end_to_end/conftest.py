"""What tests of whole doors share: a warm service, from which their runs are forked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def _service_of_session(prefect_server: str) -> Iterator[None]:
    yield
    from quantum_orchestrator.blocks.home import home
    from quantum_orchestrator.deployments import service

    service.stop(home())


@pytest.fixture
def warm_service(_service_of_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service is there, and every `qo` of the test may be served by it."""
    from quantum_orchestrator.deployments import service

    monkeypatch.setenv("QO_SERVICE", "on")
    service.ensure()
