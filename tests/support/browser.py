"""A headless Chromium for pages, driven by playwright."""

import importlib.util
import os
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APT = "apt-get install -y --no-install-recommends chromium"


def found() -> str | None:
    """Path of a Chromium; playwright would download one of its own."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def missing() -> bool:
    """Whether APT would install one."""
    return found() is None


def require_browser() -> str:
    """Path of a Chromium; skip where none is installed, fail instead under REQUIRE_BROWSER=1."""
    path = found()
    if path is None or importlib.util.find_spec("playwright") is None:
        stop = pytest.fail if os.environ.get("REQUIRE_BROWSER") == "1" else pytest.skip
        stop(f"no Chromium: {APT}" if path is None else "no playwright: pip install -e '.[test]'")
    return path
