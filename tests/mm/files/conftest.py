import pytest
from mmengine.logging import HistoryBuffer


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the file goes; afterwards nothing must have run."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / 'evil.pth'
    assert not (tmp_path / 'executed').exists()
    assert HistoryBuffer._statistics_methods.get('mean') in (None, HistoryBuffer.mean)
