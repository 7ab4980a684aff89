"""Judge a sweep: verdicts on screen, figures and tables on disk. `python analyze.py --help` explains."""

import sys

HELP = """\
Gather a sweep's runs and judge whether the best learning rate transfers.

  python analyze.py sweep=NAME [KEY=VALUE ...] [--check]       judge one sweep
  python analyze.py --summary FOLDER [NAME ...] [--check]      set the sweeps judged so far side by side

Give it the overrides the sweep was launched with. It trains nothing, reads the run folders, and works while a sweep still runs.
On screen, a line a rule: transfers | drifts | undecided, the slope of log2 optimal lr against log2 width and its 95 % interval,
the regret at the largest width when the base's optimum is used there, and whether feature norms are flat over width.
Where only sweep.depth varies, the same over depth (layers). Where both vary, each is judged at the base of the other, and a
line a rule says where in the grid of width and depth the base's lr costs most.

Under results/NAME:
  lr_transfer.pdf .svg .png      loss against lr, a line a size; optimum against size
  feature_norms.pdf .svg .png    change of modules' features and of weights against size (all of them: features.csv); over
                                 depth in the first and last block, updates inside blocks times the depth
  feature_steps.pdf .svg .png    their slopes at every probed step
  layers.pdf .svg .png           over depth: change of every block's and branch's output against its place in the model
  joint_regret.pdf .svg .png     over width and depth: what the lr tuned on the base model costs at every size (and .csv)
  spectral_norms stable_rank alignment, and trust_ratios clip_fraction shampoo_spectra for LAMB, Sophia, Shampoo: .pdf .svg .png
                                 what single tensors did, where the runs recorded it
  curves.csv optima.csv features.csv verdicts.json
  depth/                         where both vary: all of it over depth, while the rest above is over width

--summary reads the results of every sweep below FOLDER, as in --summary results/mini/width, and no run. Rows: in alphabetical
order of optimizer, or those of the NAMEs (optimizers or folders) in their order. Into FOLDER:
  summary.csv                    a row a sweep and rule: verdict, slope, regret, feature check, optimum and loss at every size
  summary.pdf .svg .png          a row a sweep: losses under each rule, optimum against width, slope, verdict, regret
  summary_figure.csv             what is drawn

--check turns the verdicts into the exit code: 0 if every rule but the controls (standard*) transfers, no feature fails and
no run is missing, over every axis that varies, else 5. Other exit codes: 0 written · 2 bad input.
"""


def main(argv: list[str]) -> int:
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    from spectral_mup.cli.analyze import analyze, summarize
    from spectral_mup.cli.main import guard

    action = summarize if "--summary" in argv else analyze
    given = [a for a in argv if a not in ("--check", "--summary")]
    return guard(lambda: action(given, check="--check" in argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
