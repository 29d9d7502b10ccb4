import pytest


@pytest.fixture(params=["binary", "multiclass", "multilabel", "regression"])
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)
