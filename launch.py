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
  python launch.py sweep=mini/width optimizer=muon 'rule=[spectral,zheng,standard]'
  python launch.py action=explain 'rule=[spectral,tensor_programs_v]' 'sweep.width=[256]'

Any key of conf/config.yaml and its groups can be given as KEY=VALUE; learning rates are log2.
A launch may be stopped or killed at any moment: the same command goes on, and no run is done twice.
Exit codes: 0 all done · 1 some runs failed · 2 bad input, nothing started · 4 W&B gave no answer · 130 interrupted.
"""


def main(argv: list[str]) -> int:
    from spectral_mup import cli

    if "-h" in argv or "--help" in argv:
        print(HELP.format(groups=cli.groups()))
        return 0
    return cli.guard(lambda: cli.launch(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
