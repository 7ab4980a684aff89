"""Laws of the cache of results: nothing but speed rests on it, whatever becomes of the folders or of the cache."""

import math
import os
import shutil

import pytest
from support.cli import DIVERGED, finish, planned

from spectral_mup.runs.results import Results
from spectral_mup.runs.run_folder import RunFolder


@pytest.fixture
def sweep(tiny_overrides, tmp_path):
    """(run ids, folder of runs, cache) of a sweep whose last run has not ended; the results are cached."""
    runs, folder, cache = planned([*tiny_overrides, "lr.adaptive=false"]), tmp_path / "runs", tmp_path / "cache" / "runs"
    for run in runs[:-1]:
        finish(run, folder)
    ids = [run.run_id for run in runs]
    read(runs, Results(folder, cache), save=True)
    assert cache.exists()
    return runs, ids, folder, cache


def read(runs, results, save=False):
    """Results by run."""
    found = {run.run_id: results.of(run) for run in runs}
    if save:
        results.save()
    return found


def test_cached_results_are_those_of_the_folders_and_no_file_is_read(sweep, monkeypatch):
    runs, ids, folder, cache = sweep
    fresh = read(runs, Results(folder))
    assert [result is None for result in fresh.values()] == [False] * (len(ids) - 1) + [True]
    opened = []
    real = RunFolder.read
    monkeypatch.setattr(RunFolder, "read", lambda self, name: opened.append(self.run_id) or real(self, name))
    assert read(runs, Results(folder, cache)) == fresh and set(opened) == {ids[-1]}  # which may have ended by now
    assert read(runs, Results(folder)) == fresh and set(opened) == set(ids)  # control: without a cache


def test_a_changed_added_or_removed_run_is_seen(sweep):
    runs, ids, folder, cache = sweep
    result, times = folder / ids[0] / "result.json", os.stat(folder / ids[0] / "result.json")
    text = result.read_text()
    result.write_text(text.replace('"steps": 12', '"steps": 13'))  # in place, of the same size, and as if at the same time
    os.utime(result, ns=(times.st_atime_ns, times.st_mtime_ns))
    RunFolder(folder, ids[1]).write("result.json", DIVERGED)
    shutil.rmtree(folder / ids[2])
    finish(runs[-1], folder)
    results = Results(folder, cache)
    found = read(runs, results, save=True)
    assert found == read(runs, Results(folder)) == read(runs, Results(folder, cache))
    assert found[ids[0]]["steps"] == 13 and found[ids[2]] is None and found[ids[-1]]["status"] == "done"
    assert results.loss(runs[1]) == math.inf and results.loss(runs[2]) is None


def test_an_edited_config_is_refused_though_its_result_is_cached(sweep, caplog):
    runs, ids, folder, cache = sweep
    config = folder / ids[0] / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    found = read(runs, Results(folder, cache))
    assert found.pop(ids[0]) is None and all(found[i] for i in ids[1:-1])  # the others count as before
    assert [
        r.getMessage() for r in caplog.records if "edited after the run began" in r.getMessage() and ids[0] in r.getMessage()
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.replace(b'"steps": 12', b'"steps": 13'),  # still JSON
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\xff" * 100,
    ],
)
def test_a_damaged_cache_is_ignored_and_replaced(sweep, damage):
    runs, _, folder, cache = sweep
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    assert cache.read_bytes() != whole
    assert read(runs, Results(folder, cache), save=True) == read(runs, Results(folder))
    assert cache.read_bytes() == whole


def test_two_readers_at_once_leave_a_whole_cache(sweep):
    runs, _, folder, cache = sweep
    fresh, readers = read(runs, Results(folder)), [Results(folder, cache), Results(folder, cache)]
    for reader, own in zip(readers, (runs[:3], runs), strict=True):
        read(own, reader)
    for reader in (*readers, readers[0]):
        reader.save()
        assert read(runs, Results(folder, cache)) == fresh
        assert not [path for path in cache.parent.iterdir() if path != cache]


def test_where_nothing_can_be_written_results_are_read(sweep, tmp_path):
    runs, _, folder, cache = sweep
    (tmp_path / "file").touch()
    assert read(runs, Results(folder, tmp_path / "file" / "runs"), save=True) == read(runs, Results(folder, cache))


@pytest.mark.parametrize(("steps", "seconds"), [(12, 6.0), (3, 24.0), (0, 0.0)])
def test_of_a_resumed_run_the_steps_before_count_as_those_that_were_timed(sweep, steps, seconds):
    """Of 12 steps, `steps` were timed, in 6 s; without any, how long it took is not known."""
    runs, ids, folder, _ = sweep
    RunFolder(folder, ids[0]).write("timing.json", {"seconds": 6.0, "steps": steps, "device": "cpu"})
    assert Results(folder).seconds(runs[0]) == seconds
    assert Results(folder).seconds(runs[1]) == Results(folder).seconds(runs[-1]) == 0.0
