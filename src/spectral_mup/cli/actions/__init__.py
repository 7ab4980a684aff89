"""The actions of `launch`: help, validation and dispatch read this one dict. A new action is a function here and its entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from spectral_mup.cli.actions import prepare, recipe, rules, states, sweeps, train, wandb_push
from spectral_mup.cli.context import Context


@dataclass(frozen=True)
class Action:
    """A function from a Context to an exit code, its line in --help, and what must be in order before it is called."""

    run: Callable[[Context], int]
    help: str
    needs: Literal["config", "sweep", "slurm"]


ACTIONS: dict[str, Action] = {
    "run": Action(train.run, "train what the sweep still lacks (the default), here or as job arrays on SLURM", "sweep"),
    "plan": Action(train.plan, "show what would be trained, on SLURM in which tasks; start nothing", "sweep"),
    "explain": Action(rules.explain, "what each tensor trains with (init, lr, λ, ε), rules side by side", "sweep"),
    "recipe": Action(recipe.recipe, "what to train a larger model with: lr, drift, each tensor [target.width=N]", "sweep"),
    "status": Action(states.status, "every run: planned, queued, running, done, failed and why [watch]", "sweep"),
    "why": Action(states.why, "what went wrong, by cause: the last lines, what to do [run=ID]", "sweep"),
    "logs": Action(states.logs, "the end of a task's log [run=ID] [watch]", "sweep"),
    "retry": Action(train.retry, "run failed, lost, paused or cancelled runs again [cause=NAME] [run=ID]", "sweep"),
    "extend": Action(train.extend, "submit what the results so far call for; tasks that end do so too", "slurm"),
    "cancel": Action(states.cancel, "show the recorded jobs, ask, cancel them [run=ID] [yes]", "sweep"),
    "ls": Action(sweeps.ls, "the sweeps that were launched by name: runs, last activity, verdicts; short: ls", "config"),
    "doctor": Action(states.doctor, "show what this machine and its SLURM offer and what to fix", "config"),
    "wandb_push": Action(
        wandb_push.wandb_push, "copy the runs, and the verdict once analysed, to Weights & Biases, each row once", "sweep"
    ),
    "derive": Action(rules.derive, "measure how an optimizer's updates grow, write the rule that follows", "config"),
    "prepare": Action(prepare.prepare, "tokenize a text, to train on it with data=prepared", "config"),
}
