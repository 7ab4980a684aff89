"""A sweep of tiny runs on a real SLURM that breaks all the time, brought to its end by the commands that a user would give.

    python benchmarks/soak.py [--minutes 10] [--runs 200] [--seed 0]

For that many minutes a fault begins every few seconds (FAULTS of tests/support/slurm_soak.py, each once before any comes again,
several at a time), while a user launches and then does what action=status advises. Then everything is repaired, and the sweep
must end: every result with the bytes of an unbroken sweep trained in this process, each put in place once, and no job, process
or claim left. The seed draws the faults; what they hit depends on the machine as well. Needs the packages that
tests/support/slurm_cluster.py names, but no root. Exit code 0 if all held; else 1, and the folder of the sweep is kept.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.launches import FILES, ended, leftovers, trained
from support.slurm_cluster import SlurmCluster
from support.slurm_soak import FAULTS, Soak, Steps

from spectral_mup.cluster.liveness import may_hold
from spectral_mup.runs.provenance import commit
from spectral_mup.runs.run_folder import RunFolder
from spectral_mup.util.system import machine

EVERY = 5.0  # seconds between the beginnings of two faults, on average; on a slow machine as many as a command takes
STUCK_SECONDS = 300.0  # without a result once everything is repaired
PREEMPT = ("REQUEUE", "CANCEL")  # what becomes of preempted jobs, with an even seed and with an odd one
CODES = {0: "done", 1: "failed", 3: "refused", 4: "no answer", -9: "killed"}  # of commands; 1 only for a disk that is full
ADVICE = {"action=retry": "retry", "To submit": "run"}  # in what status prints, and the action that it means


# --- who works against them ---------------------------------------------------------------------------------------------------


def user(soak: Soak) -> Steps:
    """Launch, look, and do what status advises, until it says that all is done."""
    action, before = "run", ""
    while True:
        full, start = (soak.site.tmp / "full").exists(), time.monotonic()
        launch = soak.start(action)
        while launch.process.poll() is None:
            full = full or (soak.site.tmp / "full").exists()
            yield "", 0.2
        code, soak.pace = launch.wait(), time.monotonic() - start
        if code not in CODES or code == 1 and not full or "Traceback" in launch.err:
            soak.wrong.append(f"action={action} ended with {code}:\n{launch.out}{launch.err}")
        soak.counts[f"action={action}"] += 1
        told = [line for line in launch.out.splitlines() if line.startswith(("Submitted", "soak:"))]
        said = f"action={action}: {CODES.get(code, code)}; {told[-1] if told else launch.err.strip()}"
        yield "" if said == before else said, soak.rng.uniform(2, 8)
        before = said
        if action == "status" and "All done." in launch.out:
            return
        if held := re.search(r"scontrol release (\S+)", launch.out):
            soak.slurm("scontrol", "release", held[1])
            yield held[0], 0
        advised = [do for words, do in ADVICE.items() if words in launch.out and action == "status"]
        action = advised[0] if advised else "status"


def administrator(soak: Soak) -> Steps:
    """End preemptions and suspensions, even those that a killed slurmctld revived, and bring back drained nodes."""
    while True:
        for job in {*(soak.jobs("PENDING,RUNNING", "high") or [])} - soak.meant:
            soak.slurm("scancel", job)
        for job in {*(soak.jobs("SUSPENDED") or [])} - soak.meant:
            soak.slurm("scontrol", "resume", job)
        drained = soak.slurm("sinfo", "--noheader", "--Node", "--states=drain", "--format=%N") or ""
        for node in set(drained.split()):
            soak.slurm("scontrol", "update", f"nodename={node}", "state=resume")
            yield f"administrator: {node} was drained", 0
        yield "", 2


def play(soak: Soak) -> None:
    """Let faults begin for that many minutes, repair everything, and wait for the user to find the sweep done."""
    end, next_fault = soak.began + 60 * soak.minutes, soak.began + EVERY
    person, deck, done, done_at = user(soak), [], 0, end
    actors: list[tuple[float, str, Steps]] = [(0.0, "", person), (0.0, "", administrator(soak))]
    while len(actors) > 1:  # the administrator never ends
        now = time.monotonic()
        end = end if any(steps is person for *_, steps in actors) else min(end, now)
        if now >= end:
            (soak.site.tmp / "slow").unlink(missing_ok=True)
            if (count := len(ended(soak.site.runs))) > done:
                done, done_at = count, now
            if now - done_at > STUCK_SECONDS:
                return soak.wrong.append(f"stuck with {done} of {soak.runs} runs done:\n{soak.cluster.run('squeue')}")
        elif now >= next_fault:
            next_fault = now + soak.rng.expovariate(1 / max(EVERY, soak.pace))
            deck = deck or soak.rng.sample(sorted(FAULTS), len(FAULTS))
            actors += begin_one(soak, deck)
        for actor in actors.copy():
            due, name, steps = actor
            if now >= due or name and now >= end:
                actors.remove(actor)
                if (step := next(steps, None)) is not None:
                    said, seconds = step
                    actors.append((now + seconds, name, steps))
                    if said:
                        soak.log(said)
                elif name:
                    soak.log(f"{name}: repaired")
        time.sleep(0.1)


def begin_one(soak: Soak, deck: list[str]) -> list[tuple[float, str, Steps]]:
    """Take the first fault that finds something to harm from the deck; return it if it must be repaired."""
    for name in deck.copy():
        steps = FAULTS[name](soak)
        if (step := next(steps, None)) is not None:
            deck.remove(name)
            soak.counts[name] += 1
            soak.log(f"{name}: {step[0]}")
            return [(time.monotonic() + step[1], name, steps)] if step[1] else []
    return []


# --- what must hold -----------------------------------------------------------------------------------------------------------


def check(soak: Soak, unbroken: dict[str, list[bytes]]) -> None:
    """Add to soak.wrong what does not hold in the end."""
    site = soak.site
    try:
        site.until_idle()
        soak.cluster.until("end of the jobs' processes", lambda: not soak.cluster.job_pids(), 30)
    except (AssertionError, TimeoutError) as error:
        soak.wrong.append(str(error).splitlines()[0])
    left = leftovers(site.tmp)
    written = Counter(Path(line).parent.name for line in (site.tmp / "results.log").read_text().splitlines())
    folders = {run_id: RunFolder(site.runs, run_id) for run_id in sorted(unbroken)}
    owners = {run_id: folder.owner() for run_id, folder in folders.items()}
    found = {
        "processes are left": left,
        "runs were trained to their end more than once": [run_id for run_id, times in written.items() if times > 1],
        "runs without a result": [run_id for run_id, folder in folders.items() if folder.result() is None],
        "runs that nobody planned": sorted({p.name for p in site.runs.iterdir()} - unbroken.keys()),
        "claims are left": [run_id for run_id, owner in owners.items() if owner and may_hold(folders[run_id], owner)],
        "results differ": [run_id for run_id, files in unbroken.items() if contents_of(folders[run_id].path) != files],
    }
    soak.wrong += [f"{what}: {', '.join(map(str, those))}" for what, those in found.items() if those]


def contents_of(run: Path) -> list[bytes]:
    """The bytes that must be those of the unbroken run."""
    return [path.read_bytes() if (path := run / name).exists() else b"" for name in FILES]


def report(soak: Soak) -> None:
    site = soak.site
    faults = sum(soak.counts[name] for name in FAULTS)
    print(f"\n{faults} faults: {', '.join(f'{name} {soak.counts[name]}' for name in FAULTS if soak.counts[name])}")
    actions = {name: count for name, count in soak.counts.items() if name not in FAULTS}
    print(f"{sum(actions.values())} commands: {', '.join(f'{name} {count}' for name, count in actions.items())}")
    attempts, submitted = site.attempts(), site.submitted()
    starts = {(o["slurm"]["job"], o["slurm"]["restart"]) for owners in attempts.values() for o in owners}
    print(
        f"{soak.runs} runs, {sum(map(len, attempts.values()))} attempts at them in {len(starts)} starts of tasks, "
        f"{len(submitted)} submissions, {time.monotonic() - soak.began:.0f} s"
    )
    errors = re.findall(r"^\w+(?:Error|Died|Exception)\b.*", site.log(), re.M)
    raised = Counter(re.sub(r": '/.*'", "", error) for error in errors)  # without the file, whose name is another each time
    for line, count in raised.most_common(10):
        print(f"raised {count} times in tasks: {line}")
    verdict = [f"WRONG: {what}" for what in soak.wrong] or ["all results equal those of the unbroken sweep, nothing is left"]
    print("\n".join(verdict))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--runs", type=int, default=200, help="an even number")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak", dir="/tmp"))  # a short path, for unix sockets
    print(f"{machine()}, commit {commit()}, seed {args.seed}, {args.runs} runs in {folder}", flush=True)
    with SlurmCluster(folder / "slurm", cpus=2, preempt=PREEMPT[args.seed % 2]) as cluster:
        soak = Soak(folder / "user", cluster, args.runs, args.seed, args.minutes)
        unbroken = trained(folder / "unbroken", soak.sweep)
        soak.began = time.monotonic()
        try:
            play(soak)
            check(soak, unbroken)
        finally:
            leftovers(soak.site.tmp)
    report(soak)
    if soak.wrong:
        print(f"kept: {folder}")
    else:
        shutil.rmtree(folder)
    return bool(soak.wrong)


if __name__ == "__main__":
    sys.exit(main())
