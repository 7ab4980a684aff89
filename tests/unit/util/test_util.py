"""What workers log, how numbers are written, and which folders can be."""

import logging
import re
from pathlib import Path

import pytest

from spectral_mup.util.files import check_writable
from spectral_mup.util.log import configure_logging, log, log_run


@pytest.fixture
def package_logger():
    logger = logging.getLogger("spectral_mup")
    before = logger.handlers, logger.propagate, logger.level
    yield logger
    logger.handlers, logger.propagate, logger.level = before


def test_a_log_line_has_time_level_run_and_message(package_logger, capsys):
    configure_logging()
    log.warning("lost %d %%", 3, extra={"run": "0123456789abcdef"})
    log.info("without a run")
    log.debug("not shown")
    log_run("100 % done", "0123456789abcdef")
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ WARNING 0123456789abcdef lost 3 %", first)
    assert second.endswith(" INFO - without a run") and third.endswith(" INFO 0123456789abcdef 100 % done")


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path):
    assert check_writable(tmp_path / "new" / "deep") == check_writable(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", tmp_path / "file" / "deep", Path("/proc/of/mine")):
        with pytest.raises(OSError):
            check_writable(bad)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
