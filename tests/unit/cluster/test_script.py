"""The batch script: what a site's preamble does to it, and what is in no file that others can read."""

import json
import stat
import subprocess
from pathlib import Path

import pytest
from support.runs import composed
from support.slurm_sweeps import FIXED, ON_SLURM

from spectral_mup.cluster.slurm.script import ENTRY, render
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.cluster.slurm.submission import Submission, prepare, take
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.search.plan import make_plan

RECORDS = """
import json, sys
from pathlib import Path
path = Path(__file__).parents[6] / "calls"
path.write_text((path.read_text() if path.exists() else "") + json.dumps(sys.argv[1:]) + "\\n")
"""  # in place of enter.py
SRUN = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == --output ]] && shift; shift; done\n"$@" && exit ${SRUN_CODE-0}\n'


class Script:
    """A batch script and what it calls in place of srun and the snapshot."""

    def __init__(self, tmp_path: Path, monkeypatch) -> None:
        self.tmp, self.jobs = tmp_path, tmp_path / "jobs"
        entry = self.jobs / "code" / "code" / ENTRY
        entry.parent.mkdir(parents=True)
        entry.write_text(RECORDS)
        (tmp_path / "srun").write_text(SRUN)
        (tmp_path / "srun").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def submission(self, *overrides: str) -> Submission:
        config = composed(*ON_SLURM, *FIXED, *overrides)
        runs = make_plan(open_sweep(config), lambda p: None).runs
        prepared = prepare(self.jobs, snapshot_config(config), [runs], "", "code")
        return take(prepared, 1, lambda s: render(config, s))

    def run(self, preamble: str, srun_code: int = 0, mode: int = 0o644) -> tuple[int, list[list[str]], Submission]:
        """Exit code of the script, what it called of the snapshot, the submission."""
        site = self.tmp / "site.sh"
        site.write_text(preamble)
        site.chmod(mode)
        taken = self.submission(f"cluster.preamble={site}")
        env = {"PATH": f"{self.tmp}:/usr/bin:/bin", "SRUN_CODE": str(srun_code)}
        done = subprocess.run(["bash", str(taken.script)], capture_output=True, text=True, env=env, cwd=self.tmp, timeout=60)
        calls = [json.loads(line) for line in (self.jobs / "calls").read_text().splitlines()]
        return done.returncode, [[name, *rest] for name, _, *rest in calls], taken


@pytest.fixture
def script(tmp_path, monkeypatch):
    return Script(tmp_path, monkeypatch)


@pytest.mark.parametrize("code", [0, 137])
@pytest.mark.parametrize(
    "preamble",
    [
        "module() { :; }\nmodule purge\n",
        "set -euo pipefail\n",
        "set -euo pipefail\r\nexport X=1\r\n",
        "set -eE\ntrap 'exit 9' ERR\n",
        "set -u\nIFS=:\nset -f\numask 077\ncd /\n",
        "trap 'rm -rf /nowhere' EXIT\nset -e\n",
        "#!/bin/bash\nexec 2>/dev/null\nfalse\n",
    ],
)
def test_whatever_the_preamble_sets_the_task_s_end_is_told_once_with_its_code(script, preamble, code):
    found, calls, _ = script.run(preamble, code)
    assert (found, calls) == (code, [["array_task"], ["requeue", str(code)]])


@pytest.mark.parametrize(
    "preamble, code", [("set -e\nfalse\n", 1), ("no_such_module_command || exit 5\n", 5), ("set -u\necho $X\n", 1)]
)
def test_a_preamble_that_ends_the_script_is_told_like_a_task_that_could_not_begin(script, preamble, code):
    found, calls, _ = script.run(preamble)
    assert (found, calls) == (code, [["requeue", str(code)]])


def test_what_a_preamble_hides_stays_hidden(script):
    _, _, taken = script.run("export SITE_PASSWORD=c4nary\n", mode=0o600)
    readable = [p for p in script.jobs.rglob("*") if p.is_file() and b"c4nary" in p.read_bytes()]
    assert readable == [taken.preamble] and stat.S_IMODE(taken.preamble.stat().st_mode) == 0o600


def test_the_snapshot_is_named_by_the_command_alone(script):
    text = script.submission().script.read_text()
    assert "PYTHONPATH" not in text and text.count(f" -P -u {script.jobs}/code/code/{ENTRY} ") == 3
