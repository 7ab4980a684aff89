"""Judge a sweep: verdicts on screen, figures and tables on disk. `python analyze.py --help` explains."""

import sys

HELP = """\
Gather a sweep's runs and judge whether the best learning rate transfers.

  python analyze.py sweep=NAME [KEY=VALUE ...] [--check]

Give it the overrides the sweep was launched with. It trains nothing, reads the run folders, and works while a sweep still runs.
On screen, a line a rule: transfers | drifts | undecided, the slope of log2 optimal lr against log2 width and its 95 % interval,
the regret at the largest width when the base's optimum is used there, and whether feature norms are flat over width.

Under results/NAME:
  lr_transfer.pdf .svg .png      loss against lr, a line a width; optimum against width
  feature_norms.pdf .svg .png    change of modules' features and of weights against width (all of them: features.csv)
  feature_steps.pdf .svg .png    their slopes at every probed step
  spectral_norms stable_rank alignment, and trust_ratios clip_fraction shampoo_spectra for LAMB, Sophia, Shampoo: .pdf .svg .png
                                 what single tensors did, where the runs recorded it
  curves.csv optima.csv features.csv verdicts.json

--check turns the verdicts into the exit code: 0 if every rule but the controls (standard*) transfers, no feature fails and
no run is missing, else 5. Other exit codes: 0 written · 2 bad input.
"""


def main(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    from spectral_mup import cli

    return cli.guard(lambda: cli.analyze([a for a in argv if a != "--check"], check="--check" in argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
