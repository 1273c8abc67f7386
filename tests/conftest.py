"""Tests run offline, on one thread, and leave nothing in the working tree."""

import logging
import os
from pathlib import Path

import pytest

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, files with long ones come first, so that none is the last.

    A long test has a time limit of its own; of the others, those marked slow take the longest.
    """
    if not hasattr(config, "workerinput"):
        return
    files: dict[Path, tuple[float, int]] = {}
    for item in items:
        limit, slow = files.get(item.path, (0.0, 0))
        own = item.get_closest_marker("timeout")
        limit = max([limit, *own.args[:1], *own.kwargs.values()] if own else [limit])
        files[item.path] = limit, slow + (item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: files[item.path], reverse=True)


@pytest.fixture(scope="session", autouse=True)
def _data_of_tasks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What lmms-eval keeps of the tasks that tests make goes away with them."""
    os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(tmp_path_factory.mktemp("datasets"))


class _Keeper(logging.Handler):
    """Keeps what is logged, formatted, in `lines`."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


@pytest.fixture
def law_log():
    """Lines `LEVEL: text` of every `law` logger, which not every caplog sees: none propagates."""
    keeper = _Keeper()
    root = logging.getLogger("law")
    root.addHandler(keeper)
    yield keeper.lines
    root.removeHandler(keeper)
