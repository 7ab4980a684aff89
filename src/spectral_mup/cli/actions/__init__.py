"""The actions of `launch`: help, validation and dispatch read this one dict. A new action is a file here and its entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HERE = "spectral_mup.cli.actions"


@dataclass(frozen=True)
class Action:
    """`run` is the import path of a function Context -> exit code; `needs` is checked before it is called."""

    run: str
    help: str
    needs: Literal["config", "sweep", "slurm"]


ACTIONS: dict[str, Action] = {
    "run": Action(f"{HERE}.run.run", "train what the sweep still lacks (the default), here or as job arrays on SLURM", "sweep"),
    "plan": Action(f"{HERE}.plan.plan", "show what would be trained, on SLURM in which tasks; start nothing", "sweep"),
    "explain": Action(f"{HERE}.explain.explain", "what each tensor trains with (init, lr, λ, ε), rules side by side", "sweep"),
    "status": Action(f"{HERE}.status.status", "every run: planned, queued, running, done, failed and why [watch]", "sweep"),
    "why": Action(f"{HERE}.why.why", "what went wrong, by cause: the last lines, what to do [run=ID]", "sweep"),
    "logs": Action(f"{HERE}.logs.logs", "the end of a task's log [run=ID] [watch]", "sweep"),
    "retry": Action(f"{HERE}.retry.retry", "run failed, lost, paused or cancelled runs again [cause=NAME] [run=ID]", "sweep"),
    "extend": Action(f"{HERE}.extend.extend", "submit what the results so far call for; tasks that end do so too", "slurm"),
    "cancel": Action(f"{HERE}.cancel.cancel", "show the recorded jobs, ask, cancel them [run=ID] [yes]", "sweep"),
    "doctor": Action(f"{HERE}.doctor.doctor", "show what this machine and its SLURM offer and what to fix", "config"),
    "wandb_push": Action(f"{HERE}.wandb_push.wandb_push", "copy the runs to Weights & Biases, each row once", "sweep"),
    "derive": Action(f"{HERE}.derive.derive", "measure how an optimizer's updates grow, write the rule that follows", "config"),
    "prepare": Action(f"{HERE}.prepare.prepare", "tokenize a text, to train on it with data=prepared", "config"),
}
