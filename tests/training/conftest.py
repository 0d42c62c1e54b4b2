"""The trainings that several files of this folder look at."""

import pytest

from tests.training.trainings import PLANS, Trained, train


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, end_of_ray: None) -> Trained:
    """Those of the files that run."""
    files = {item.path.stem for item in request.session.items if "trained" in getattr(item, "fixturenames", ())}
    return train(tmp_path_factory.mktemp("trainings"), files & PLANS.keys())
