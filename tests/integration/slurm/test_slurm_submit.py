"""Laws of submission on a real SLURM: whatever dies, lies or is down, every run is given out once and ends once.

Jobs are submitted held where a test looks at the queue, so that no task ends, or submits, before it has. Faults of SLURM's
commands come from scripts on the PATH that stand before the real ones.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from support import ROOT
from support.launches import Launch, ended, planned, trained, until
from support.slurm_sweeps import FIXED, HELD, ON_SLURM, Site, before

from spectral_mup.cluster.slurm.snapshot import CHECKOUT_PARTS

PAIR = [*FIXED, "rule=[spectral]", "sweep.lr=[-6]"]  # widths 32 and 64: two tasks
pytestmark = pytest.mark.usefixtures("nothing_left")
COUNT = 'case "$*" in *--test-only*) exec "$real" "$@";; esac\necho >>"$log"; call=$(wc -l <"$log")\n'  # of true submissions


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Function of a sweep's overrides to contents() of it, trained in this very process without a break."""
    runs = tmp_path_factory.mktemp("unbroken") / "runs"
    return lambda overrides: trained(runs, overrides)


@pytest.fixture
def site(tmp_path, slurm):
    return Site(tmp_path, slurm)


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def queued(site: Site) -> list[list[str]]:
    """Id and name of every array that SLURM has."""
    return [line.split() for line in site.cluster.run("squeue", "--noheader", "--format=%F %j").splitlines()]


def job_of(folder: Path) -> str | None:
    """The job that is recorded for a submission."""
    return load(folder / "job.json").get("id") if (folder / "job.json").exists() else None


def jobs_of(site: Site) -> dict[str, list[str]]:
    """Ids of the jobs that each run was given to."""
    found: dict[str, list[str]] = {}
    for folder, submission in zip(site.numbered(), site.submitted(), strict=True):
        job = job_of(folder)
        for entry in (e for pack in submission["packs"] for e in pack):
            found.setdefault(entry["run_id"], []).extend([job] if job else [])
    return found


def to_submit(text: str) -> tuple[int, ...]:
    """Runs, tasks and arrays that a launch says it would submit."""
    found = re.search(r"^To submit: (\d+) \w+ in (\d+) tasks?, (\d+) array", text, re.M)
    assert found, text
    return tuple(map(int, found.groups()))


def given_once(site: Site, overrides: list[str]) -> None:
    """Every run is in one job, and SLURM has these jobs and no other."""
    runs = planned(overrides)
    assert {run: len(jobs) for run, jobs in jobs_of(site).items()} == {run.run_id: 1 for run in runs}
    named = [[job_of(p), s["name"]] for p, s in zip(site.numbered(), site.submitted(), strict=True) if job_of(p)]
    assert sorted(map(tuple, queued(site))) == sorted(map(tuple, named))


def release(site: Site) -> None:
    for job in {job for job, _ in queued(site)}:
        site.cluster.run("scontrol", "release", job)


def trained_once(site: Site, overrides: list[str], unbroken) -> None:
    """Release what is held: every run is trained by one attempt to the bytes of an unbroken sweep, and no job is left."""
    whole = unbroken(overrides)
    release(site)
    until(lambda: len(ended(site.runs)) >= len(whole), "the end of all runs")
    site.until_idle()
    assert site.contents() == whole
    assert {run: len(owners) for run, owners in site.attempts().items()} == dict.fromkeys(whole, 1), site.log()
    again = site.call(overrides)
    assert again.code == 0 and "Nothing to do" in again.out


# --- a launcher that dies ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_job_of_a_launcher_that_died_after_sbatch_is_adopted(site, unbroken):
    env = before(site, "sbatch", COUNT + '"$real" "$@"; kill -9 $PPID')
    assert site.call([*PAIR, HELD], env=env).code == -9
    assert len(queued(site)) == 1 and set(map(len, jobs_of(site).values())) == {0}
    assert site.states(PAIR) == {"queued": 2}
    again = site.call([*PAIR, HELD])
    assert again.code == 0 and "Nothing to submit" in again.out and "Submitted" not in again.out
    given_once(site, PAIR)
    trained_once(site, PAIR, unbroken)


def test_an_sbatch_that_outlives_its_launcher_is_waited_for(site):
    """The job comes into the queue while the next launch looks."""
    env = before(site, "sbatch", COUNT + 'kill -9 $PPID; sleep 3; exec "$real" "$@"')
    assert site.call([*PAIR, HELD], env=env).code == -9
    assert not queued(site)
    again = site.call([*PAIR, HELD])
    assert again.code == 0, again.err
    given_once(site, PAIR)
    assert site.states(PAIR) == {"queued": 2}


@pytest.mark.slow
def test_what_a_dead_launcher_left_is_submitted_by_the_tasks_that_are_in(site, unbroken):
    """Three tasks in arrays of one; nobody gives a command after the launcher has died before its second sbatch."""
    three = [*PAIR, "sweep.width=[32,48,64]"]
    env = before(site, "scontrol", '"$real" "$@" | sed "s/^MaxArraySize .*/MaxArraySize = 1/"')
    before(site, "sbatch", COUNT + '[ $call = 2 ] && kill -9 $PPID || exec "$real" "$@"')
    assert site.call(three, env=env).code == -9
    trained_once(site, three, unbroken)
    assert sorted(map(len, jobs_of(site).values())) == [1, 1, 1]


MANY = [
    *FIXED,
    "rule=[spectral]",
    "sweep.lr=[-6]",
    "sweep.depth=[2,3]",
    f"sweep.width={list(range(16, 224, 16))}".replace(" ", ""),
]


def places(site: Site) -> list[int]:
    """How many tasks of each array may run at once: what squeue writes after %, or all."""
    found = []
    for array in site.cluster.run("squeue", "--noheader", "--format=%i").split():
        indices, _, max_parallel = array.partition("[")[2].rstrip("]").partition("%")
        found.append(int(max_parallel or int(indices.rpartition("-")[2]) + 1))
    return found


@pytest.mark.slow
def test_26_tasks_in_arrays_of_11_outlive_a_launcher_that_is_killed_between_them(slurm_with, tmp_path, unbroken):
    """MaxArraySize caps the index. The next launch submits exactly the rest; never may more than 5 tasks be at work."""
    site = Site(tmp_path, slurm_with(max_array=11))
    more = [HELD, "cluster.array_parallelism=5"]
    env = before(site, "sbatch", COUNT + '[ $call = 1 ] && exec "$real" "$@"; kill -9 $PPID')
    first = site.call([*MANY, *more], env=env)
    assert first.code == -9 and to_submit(first.out) == (26, 26, 3), first.err
    (job,) = queued(site)
    assert [len(jobs) for jobs in jobs_of(site).values()] == [1] * 11 + [0] * 11  # taken, but not submitted
    assert site.states(MANY) == {"queued": 11, "planned": 15}
    again = site.call([*MANY, *more])
    assert again.code == 0 and to_submit(again.out) == (15, 15, 2), again.err
    assert job in queued(site) and len(tasks_of(site)) == 26
    assert max(int(e.partition("_")[2]) for e in tasks_of(site)) == 10
    assert sum(places(site)) <= 5
    given_once(site, MANY)
    few = [*MANY, "sweep.depth=[2]", "sweep.width=[16,32,48]"]
    rest = f"sweep.width={list(range(64, 224, 16))}"
    for part in (["sweep.depth=[3]"], ["sweep.depth=[2]", rest]):  # to be done sooner
        assert site.call([*MANY, *part, "action=cancel"]).code == 0
    trained_once(site, few, unbroken)


def test_with_more_arrays_than_places_each_waits_for_another(site):
    """Four arrays of one task, and then a fifth, in two places."""
    env = before(site, "scontrol", '"$real" "$@" | sed "s/^MaxArraySize .*/MaxArraySize = 1/"')
    limited = [*PAIR, HELD, "cluster.array_parallelism=2"]
    assert site.call([*limited, "sweep.width=[32,48,64,80]"], env=env).code == 0
    assert site.call([*limited, "sweep.width=[32,48,64,80,96]"], env=env).code == 0
    jobs = [job_of(p) for p in site.numbered()]
    after = [s["after_job"] for s in site.submitted()]
    assert len(set(jobs)) == 5 and after[:2] == [None, None] and len(set(after[2:])) == 3 and set(after[2:]) <= set(jobs)
    told = site.cluster.run("squeue", "--noheader", "--format=%F %E", "--sort=i").splitlines()
    waits = {job: rest.partition("afterany:")[2].partition("_")[0] or None for job, rest in (line.split() for line in told)}
    assert waits == dict(zip(jobs, after, strict=True))


# --- an sbatch that lies or refuses -----------------------------------------------------------------------------------

SILENT = "echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"


@pytest.mark.parametrize("taken", [True, False])
def test_a_time_out_of_sbatch_is_no_answer(site, taken):
    """Whether it took the job is looked up by the job's name: adopted if it is there, tried once more if not."""
    real = '"$real" "$@" >/dev/null\n' if taken else ""
    env = before(site, "sbatch", f'{COUNT}if [ $call = 1 ]; then {real}{SILENT}; fi; exec "$real" "$@"')
    launch = site.call([*PAIR, HELD], env=env)
    assert launch.code == 0 and "Submitted job" in launch.out, launch.err
    assert (site.tmp / "bin/sbatch.log").read_text() == "\n" * (1 if taken else 2)
    given_once(site, PAIR)
    assert site.states(PAIR) == {"queued": 2}


GREETING = "echo 'Welcome | to | the cluster'; echo 2026; "


@pytest.mark.slow
def test_a_site_whose_commands_greet_is_understood(site):
    """The id is not to be had from sbatch then: the job is looked up by its name, and submitted once."""
    for name in ("squeue", "sacct", "scontrol", "scancel"):
        before(site, name, GREETING + 'exec "$real" "$@"')
    env = before(site, "sbatch", COUNT + GREETING + 'exec "$real" "$@"')
    assert site.call([*PAIR, HELD], env=env).code == 0
    assert (site.tmp / "bin/sbatch.log").read_text() == "\n"
    given_once(site, PAIR)
    assert ": 2 queued" in (status := site.call([*PAIR, "action=status"], env=env)).out, status.err
    assert "Cancelled 2 runs" in site.call([*PAIR, "action=cancel"], env=env).out and not queued(site)


@pytest.mark.slow
def test_an_sbatch_that_never_answers_ends_with_4_and_the_same_command_goes_on(site):
    launch = site.call([*PAIR, HELD], env=before(site, "sbatch", COUNT + SILENT))
    assert launch.code == 4 and not queued(site)
    assert "Socket timed out" in launch.err and "submitted so far: nothing" in launch.err and one_line(launch.err)
    assert site.states(PAIR) == {"planned": 2}
    assert site.call([*PAIR, HELD]).code == 0
    given_once(site, PAIR)


@pytest.mark.slow
def test_a_refusal_half_way_says_what_is_in_and_the_same_command_submits_the_rest(site, unbroken):
    """Three tasks in arrays of one, of which sbatch takes the first."""
    three = [*PAIR, "sweep.width=[32,48,64]"]
    env = before(site, "scontrol", '"$real" "$@" | sed "s/^MaxArraySize .*/MaxArraySize = 1/"')
    before(
        site,
        "sbatch",
        COUNT + '[ $call = 1 ] && exec "$real" "$@"; echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1',
    )
    launch = site.call([*three, HELD], env=env)
    assert launch.code == 4 and "3 arrays of at most 1" in launch.out
    (first,) = queued(site)
    assert "QOSMaxSubmitJobPerUserLimit" in launch.err and f"submitted so far: 1 (job {first[0]})" in launch.err
    assert one_line(launch.err)
    assert site.states(three) == {"queued": 1, "planned": 2}
    (site.tmp / "bin/sbatch").unlink()
    rest = site.call([*three, HELD], env=env)
    assert rest.code == 0 and to_submit(rest.out) == (2, 2, 2), rest.err
    given_once(site, three)
    trained_once(site, three, unbroken)


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n")


# --- several who launch -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_launches_max_parallel_one_submits_and_the_other_says_who(site, unbroken):
    env = before(site, "sbatch", COUNT + 'sleep 1; exec "$real" "$@"')
    launches = [site.start([*PAIR, HELD], env=env) for _ in range(2)]
    assert [launch.wait() for launch in launches] == [0, 0], [launch.err for launch in launches]
    (job,) = (job for job, _ in queued(site))
    given_once(site, PAIR)
    winner, other = sorted(launches, key=lambda launch: "Submitted" not in launch.out)
    assert f"Submitted job {job} (2 runs in 2 tasks)" in winner.out
    assert "Submitted" not in other.out
    assert f"process {winner.process.pid} on" in other.out

    wider = [*PAIR, "sweep.lr=[-6,-4]", "sweep.name=other"]  # overlaps, and goes by another name
    launch = site.call([*wider, HELD])
    assert launch.code == 0 and ": 2 queued, 2 planned" in launch.out and "Submitted job" in launch.out
    given_once(site, wider)
    trained_once(site, wider, unbroken)


def test_a_launch_while_another_is_at_sbatch_takes_nothing(site):
    """It finds the folder that the other has taken, without a job as yet."""
    go = site.tmp / "go"
    env = before(site, "sbatch", COUNT + f'until [ -e {go} ]; do sleep 0.1; done; exec "$real" "$@"')
    first = site.start([*PAIR, HELD], env=env)
    until(lambda: (site.jobs / "1/submit.sh").exists(), "the folder")
    second = site.call([*PAIR, HELD])
    assert not (site.jobs / "1/job.json").exists()
    go.touch()
    assert second.code == 0 and f"a job that process {first.process.pid} on" in second.out, second.out + second.err
    assert first.wait() == 0
    given_once(site, PAIR)


# --- cancel -----------------------------------------------------------------------------------------------------------


def tasks_of(site: Site) -> set[str]:
    """Ids of all tasks that SLURM has, as in 3_1."""
    return set(site.cluster.run("squeue", "--noheader", "--array", "--format=%F_%K").split())


@pytest.mark.slow
def test_cancel_ends_recorded_tasks_of_the_named_part_only(site, unbroken):
    """A job of the same user and name is somebody else's. A launch has the cancelled after all; extend does not."""
    assert site.call([*PAIR, HELD]).code == 0
    ((job, name),) = queued(site)
    foreign = site.cluster.run(
        "sbatch", "--parsable", "--hold", f"--job-name={name}", "--output=/dev/null", "--wrap=true"
    ).strip()
    assert tasks_of(site) == {f"{job}_0", f"{job}_1", f"{foreign}_N/A"}
    part = [*PAIR, "sweep.width=[32]"]
    cancelled = site.call([*part, "action=cancel"])
    assert cancelled.code == 0 and "Cancelled 1 " in cancelled.out
    assert tasks_of(site) == {f"{job}_0", f"{foreign}_N/A"}
    assert site.states(PAIR) == {"queued": 1, "cancelled": 1} and site.states(part) == {"cancelled": 1}
    nothing = site.call([*PAIR, HELD, "action=extend"])
    assert nothing.code == 0 and "Nothing to submit" in nothing.out and len(site.numbered()) == 1
    assert "Nothing to cancel" in site.call([*part, "action=cancel"]).out
    again = site.call([*PAIR, HELD])
    assert again.code == 0 and to_submit(again.out) == (1, 1, 1)
    site.cluster.run("scancel", foreign)
    assert site.states(PAIR) == {"queued": 2}
    trained_once(site, PAIR, unbroken)


LONG = [
    *PAIR, "train.steps=300", "probe.steps=[1,150]", "cluster.checkpoint_seconds=0.1",
]  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_cancelled_at_work_stays_so_until_it_is_launched_again(site, unbroken):
    """One by action=cancel, one by scancel outside; both go on from their checkpoints to the bytes of an unbroken run."""
    whole = unbroken(LONG)
    assert site.call(LONG).code == 0
    held: list[int] = []

    def hold() -> bool:
        """Freeze each worker whose run has a checkpoint."""
        for owner in site.runs.glob("*/attempts/1/owner.json"):
            pid = load(owner)["pid"]
            if pid not in held and list(owner.parents[2].glob("ckpt/*.pt")):
                os.kill(pid, signal.SIGSTOP)
                held.append(pid)
        return len(held) == 2

    until(hold, "checkpoints")
    assert not ended(site.runs), "too late: raise train.steps of LONG"
    ((job, _),) = {tuple(line) for line in queued(site)}
    assert site.states(LONG) == {"running": 2}
    assert site.call([*LONG, "sweep.width=[32]", "action=cancel"]).code == 0
    site.cluster.run("scancel", f"{job}_0")
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    site.until_idle()  # a job that came back would train on to its end
    assert site.states(LONG) == {"cancelled": 2}
    why = site.call([*LONG, "action=why"])
    assert "cancelled (2 " in why.out and f"job {job}_0 was cancelled outside" in why.out
    assert site.call(LONG).code == 0
    until(lambda: len(ended(site.runs)) == 2, "the end")
    site.until_idle()
    assert site.contents() == whole
    assert [len(owners) for owners in site.attempts().values()] == [2, 2]


# --- what a job is frozen with ----------------------------------------------------------------------------------------

OUTER = {
    "SBATCH_TIMELIMIT": "nonsense", "SLURM_CPU_BIND": "map_cpu:99", "SLURM_JOB_ID": "999999",
    "SLURM_ARRAY_JOB_ID": "999999", "SLURM_ARRAY_TASK_ID": "7", "SLURM_RESTART_COUNT": "3", "SLURM_NTASKS": "5",
    "SLURM_CPUS_PER_TASK": "77", "SLURM_OUTER": "canary", "PMI_RANK": "4", "SRUN_DEBUG": "7", "SQUEUE_STATES": "COMPLETED",
    "SQUEUE_FORMAT": "%i", "SACCT_FORMAT": "JobID", "SCANCEL_STATE": "RUNNING",
}  # fmt: skip
ONE = [*PAIR, "sweep.width=[32]"]


def test_launched_from_inside_an_allocation_nothing_of_it_reaches_the_job(site, unbroken):
    preamble = site.tmp / "site.sh"
    preamble.write_text(f"env >{site.tmp}/env\n")
    client = site.cluster.env() | OUTER
    refused = subprocess.run(["sbatch", "--wrap=true"], env=client, capture_output=True, text=True, cwd=site.tmp)
    assert refused.returncode and "time" in refused.stderr  # so that it matters
    launch = site.call([*ONE, f"cluster.preamble={preamble}"], env=OUTER)
    assert launch.code == 0, launch.err
    assert site.call([*ONE, "action=status"], env=OUTER).out.startswith("tiny: 1 ")
    trained_once(site, ONE, unbroken)
    inside = dict(line.partition("=")[::2] for line in (site.tmp / "env").read_text().splitlines())
    assert inside["SLURM_CONF"] == str(site.cluster.conf) and inside["SLURM_ARRAY_TASK_ID"] == "0"
    assert not {k for k, v in OUTER.items() if inside.get(k) == v}


def test_jobs_run_the_code_and_the_config_that_were_launched(site, unbroken):
    """In a copy of the source tree whose optimizer and trainer are changed while the job waits."""
    source = site.tmp / "source"
    for part in CHECKOUT_PARTS:
        if (ROOT / part).is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "results")
            shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=skipped)
        else:
            shutil.copy(ROOT / part, source / part)
    env = {"PYTHONPATH": f"{source}/src"}
    script = str(source / "launch.py")
    assert site.call([*ONE, HELD], script=script, env=env).code == 0
    assert "code≠" not in site.call([*ONE, "action=status"], script=script, env=env).out
    (source / "src/spectral_mup/training/loop.py").write_text("raise RuntimeError('edited')\n")
    changed = site.call([*ONE, "action=status"], script=script, env=env)
    assert "code≠: 1 " in changed.out
    for file in [*source.glob("conf/optimizer/*.yaml"), *source.glob("conf/train/*.yaml"), *source.glob("src/**/*.py")]:
        file.write_text("broken: [")
    assert site.call(ONE, script=script, env=env).code not in (0, None)
    trained_once(site, ONE, unbroken)


# --- messages ---------------------------------------------------------------------------------------------------------


def nothing_submitted(site: Site) -> bool:
    return not queued(site) and not (site.jobs.is_dir() and site.numbered())


def test_without_a_terminal_nothing_is_submitted_unless_yes(site):
    client = site.cluster.env()
    unsure = Launch(site.tmp, [*PAIR, *ON_SLURM[:-1]], env={k: client[k] for k in ("SLURM_CONF", "PATH")})
    assert unsure.wait() == 3 and nothing_submitted(site)
    assert "yes=true" in unsure.err and one_line(unsure.err)


@pytest.mark.parametrize("key, value", [("partition", "nowhere"), ("gpus", "9"), ("constraint", "purple")])
def test_what_sbatch_would_refuse_is_told_by_its_key(site, key, value):
    client = site.cluster.env()
    launch = Launch(site.tmp, [*PAIR, *ON_SLURM, f"cluster.{key}={value}"], env={k: client[k] for k in ("SLURM_CONF", "PATH")})
    assert launch.wait() == 2 and nothing_submitted(site), launch.out
    assert launch.err.startswith(f"error: cluster.{key}={value}") and one_line(launch.err)


@pytest.mark.slow
def test_while_all_nodes_are_down_what_they_could_run_is_submitted_and_what_they_could_not_is_refused(site):
    site.cluster.run("scontrol", "update", "nodename=ALL", "state=drain", "reason=night")
    never = site.call([*PAIR, HELD, "cluster.gpus=9"])
    assert never.code == 2 and "cluster.gpus=9" in never.err and nothing_submitted(site)
    waits = site.call([*PAIR, HELD])
    assert waits.code == 0 and "down: 2 nodes with its cores and GPUs; unless they lack something else" in waits.out, waits.err
    given_once(site, PAIR)


def test_a_controller_that_is_down_ends_a_launch_with_4(site):
    impatient = site.tmp / "slurm.conf"
    impatient.write_text(site.cluster.conf.read_text() + "MessageTimeout=2\n")
    site.cluster.stop_controller()
    launch = site.call(PAIR, env={"SLURM_CONF": str(impatient)})
    site.cluster.start_controller()
    assert launch.code == 4 and "nothing was submitted" in launch.err and one_line(launch.err), launch.err
    assert nothing_submitted(site)


def test_without_slurm_on_the_path_one_line_says_so(site):
    folder = site.tmp / "few"
    folder.mkdir()
    for name in ("bash", "git", "env"):
        (folder / name).symlink_to(shutil.which(name))
    none = site.call(PAIR, env={"PATH": str(folder)})
    assert none.code == 2 and "no srun on the PATH" in none.err and one_line(none.err), none.err
    (folder / "srun").symlink_to(shutil.which("srun"))
    some = site.call(PAIR, env={"PATH": str(folder)})
    assert some.code == 4 and "sbatch is not installed here" in some.err and one_line(some.err), some.err
    assert nothing_submitted(site)


# --- an accounting that is no help, and large sweeps ------------------------------------------------------------------

COUNTED = ("squeue", "sacct", "scontrol", "sinfo", "sbatch", "scancel")


def counting(site: Site) -> dict[str, str]:
    """Environment in which every call of a SLURM command is counted."""
    return [before(site, name, 'echo >>"$log"; exec "$real" "$@"') for name in COUNTED][0]


def calls(site: Site) -> Counter:
    """Calls of each command since the last time."""
    found = Counter()
    for log in (site.tmp / "bin").glob("*.log"):
        found[log.stem] = log.read_text().count("\n")
        log.unlink()
    return found


def large(count: int) -> list[str]:
    """A sweep of so many runs in one shape, which nobody is going to train."""
    seeds = ",".join(map(str, range(count // 5)))
    return [*PAIR, "sweep.width=[32]", "sweep.lr=[-8,-7,-6,-5,-4]", f"sweep.seed=[{seeds}]"]


def without(site: Site, *names: str) -> dict[str, str]:
    """Environment whose PATH has all commands but these."""
    folder = site.tmp / "most"
    folder.mkdir()
    for path in reversed(site.cluster.env()["PATH"].split(os.pathsep)):
        for tool in Path(path).iterdir() if Path(path).is_dir() else []:
            (folder / tool.name).unlink(missing_ok=True)
            (folder / tool.name).symlink_to(tool)
    for name in names:
        (folder / name).unlink()
    return {"PATH": str(folder)}


@pytest.mark.slow
def test_without_accounting_the_queue_alone_tells_and_nothing_is_submitted_twice(site, unbroken):
    """One task waits; one was cancelled, so that the queue does not know it and the accounting is asked."""
    assert site.call([*PAIR, HELD]).code == 0
    assert site.call([*PAIR, "sweep.width=[32]", "action=cancel"]).code == 0
    there = tasks_of(site)
    assert len(there) == 1
    absent, fake = without(site, "sacct"), before(site, "sacct", "exit 0")
    for env, body, said in (
        (absent, "", "(sacct is not installed here)"), (fake, "exec sleep 60", "(sacct gave no answer in 10 s)"),
        (fake, "exit 0", ""), ({}, "", "Connection refused"),
    ):  # fmt: skip
        if not env:
            site.cluster.stop_slurmdbd()
        before(site, "sacct", body)
        for action, answer in (("status", ": 1 queued, 1 cancelled\n"), ("extend", "Nothing to submit")):
            if "sleep" in body and action == "extend":
                continue  # ten seconds more
            launch = site.call([*PAIR, f"action={action}"], env=env)
            assert launch.code == 0 and answer in launch.out, launch.out + launch.err
            assert launch.err == "" if not said else one_line(launch.err) and said in launch.err, launch.err
        assert tasks_of(site) == there and len(site.numbered()) == 1
    assert site.call([*PAIR, HELD]).code == 0  # the cancelled one, still without accounting
    trained_once(site, PAIR, unbroken)


VERBS = ["status", "why", "plan", "logs", "run", "extend", "doctor", "retry", "cancel", "status"]


@pytest.mark.slow
def test_with_slurmdbd_down_every_command_on_500_runs_answers_in_5_seconds(site):
    sweep = [*large(500), HELD]
    assert site.call(sweep).code == 0
    assert site.call([*large(50), "action=cancel"]).code == 0
    site.cluster.stop_slurmdbd()
    run = next(iter(jobs_of(site)))
    took = {}
    for verb in VERBS:
        chosen = [f"run={run}"] if verb == "logs" else []
        launch = site.start([*sweep, f"action={verb}", *chosen])
        took[verb] = launch.seconds()
        assert launch.code == 0 or (verb == "logs" and launch.code == 2), (verb, launch.err)
    assert max(took.values()) < 5, took
    assert site.states(large(500)) == {"cancelled": 500}


@pytest.mark.slow
def test_a_sweep_of_5000_runs_is_planned_in_10_seconds_and_costs_as_few_slurm_calls_as_a_small_one(site):
    env = counting(site)
    sweep = large(5000)
    plan = site.start([*sweep, "action=plan"], env=env)
    took = plan.seconds()
    assert plan.code == 0 and to_submit(plan.out) == (5000, 625, 1)
    assert took < 10
    costs = []
    for count in (10, 5000):
        launch = site.call([*large(count), HELD], env=env)
        assert launch.code == 0, launch.err
        assert site.call([*large(10), "action=cancel"]).code == 0  # so that sacct is asked as well
        calls(site)
        status = site.call([*large(count), "action=status"], env=env)
        assert status.code == 0 and status.out.startswith(f"tiny: {count} ")
        costs.append(calls(site))
    assert costs[0] == costs[1] == {"squeue": 1, "sacct": 1}
    assert ": 4990 queued, 10 cancelled\n" in status.out
