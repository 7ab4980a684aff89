"""Launch a sweep: compose, plan, run what is not done. `python launch.py --help` explains."""

import sys

HELP = """\
Tune on small models, train large ones: run a width × learning-rate sweep and see whether the optimum transfers.

  python launch.py sweep=NAME [KEY=VALUE ...]      train what the sweep still lacks, on this machine
  python launch.py sweep=NAME action=plan          say what it would train, and start nothing
  python launch.py sweep=NAME action=explain       print what each tensor trains with (init, lr, λ, ε), rules side by side
  python launch.py action=derive optimizer=NAME    measure how its direction grows with width, write the rule that follows
  python launch.py action=prepare prepare.input=FILE prepare.out=FOLDER    tokenize a text, to train on with data=prepared
  python launch.py sweep=NAME action=wandb_push    copy its runs to Weights & Biases: what is there already is not sent again
  python analyze.py sweep=NAME                     verdicts on screen, figures and tables under results/NAME

On SLURM (slurm/README.md), where the launcher submits and goes:
  python launch.py sweep=NAME cluster=slurm        pack what is missing into job arrays, check, ask, submit (yes: do not ask)
  python launch.py sweep=NAME cluster=slurm action=plan      the same up to the question: points, tasks, GPU-hours
  … action=status [watch]      every point: planned, queued, running with ETA, done, diverged, failed and why, lost
  … action=why [run=ID]        what went wrong, by cause: the last lines, what to do
  … action=logs [run=ID] [watch]
  … action=retry [cause=NAME] [run=ID]    begin failed, lost, held back or cancelled points again
  … action=extend              submit what the results so far ask for; tasks do it too when they end
  … action=cancel [run=ID]     shows the recorded jobs, asks, ends them
  … action=doctor              what this site offers and what to mend

Choices (files under conf/ and sweeps/):
{groups}

Examples:
  python launch.py sweep=default 'sweep.width=[64,128,256,512]'     add a width; only its points are trained
  python launch.py sweep=default optimizer=muon sweep.name=muon     another optimizer
  python launch.py 'sweep.lr=[-9,-8,-7,-6,-5,-4]' lr.adaptive=false sweep.name=grid
  python launch.py data=text data.path=/path/to/book.txt sweep.name=book
  python launch.py action=prepare prepare.input=stories.jsonl prepare.out=tokens prepare.tokenizer=bpe
  python launch.py action=prepare prepare.input=hf:Skylion007/openwebtext prepare.out=owt prepare.tokenizer=gpt2
  python launch.py data=prepared data.path=/path/to/tokens sweep.name=stories
  python launch.py action=derive optimizer=other optimizer.name=mine optimizer.algorithms.other.target=package.Class
  python launch.py sweep=default cluster=slurm cluster.partition=gpu cluster.time=480
  python launch.py sweep=mini/width optimizer=muon 'rule=[spectral,zheng,standard]'
  python launch.py action=explain 'rule=[spectral,tensor_programs_v]' 'sweep.width=[256]'

Any key of conf/config.yaml and its groups can be given as KEY=VALUE; learning rates are log2.
A launch may be stopped or killed at any moment: the same command goes on, and no run is done twice.
Exit codes: 0 all done, or submitted · 1 some runs failed · 2 bad input, nothing started · 3 refused: held back,
or not confirmed · 4 SLURM or W&B said no or nothing, what is in stays · 130 interrupted.
"""


def main(argv: list[str]) -> int:
    from spectral_mup.cli import main as cli

    if "-h" in argv or "--help" in argv:
        print(HELP.format(groups=cli.groups()))
        return 0
    return cli.guard(lambda: cli.launch([f"{word}=true" if word in ("watch", "yes") else word for word in argv]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
