"""Tests run offline, on one thread, and leave nothing in the working tree."""

import logging
import os

import pytest

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)


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
