import pytest

from ibtrain.data.preparation import survey


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "CHUNK_EXAMPLES", 8)
