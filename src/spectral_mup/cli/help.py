"""What --help prints."""

import textwrap

from spectral_mup.analysis.figures import figure_help
from spectral_mup.cli.actions import ACTIONS
from spectral_mup.config.presets import GROUPS, options
from spectral_mup.util.text import table

CONSOLE_HELP = """\
Tune on small models, train large ones: learning rates that transfer across width and depth.

  spectral-mup launch sweep=FILE [KEY=VALUE ...]   plan and train a sweep, here or on SLURM; launch --help
  spectral-mup launch NAME                         resume one as it was launched
  spectral-mup analyze NAME                        judge it: does the best learning rate transfer? analyze --help
  spectral-mup ls                                  the sweeps that were launched: runs, last activity, verdicts
  spectral-mup init FOLDER                         write a small project: a sweep, a rule, an optimizer and a model to edit
  spectral-mup --version
"""

LAUNCH_HELP = """\
Tune on small models, train large ones: run a width × learning-rate sweep and see whether the optimum transfers.

  {launch} sweep=FILE [KEY=VALUE ...]                train what the sweep still lacks, on this machine
  {launch} sweep=FILE cluster=slurm [KEY=VALUE ...]  on SLURM: submit it as job arrays (slurm/README.md)
  {launch} NAME [KEY=VALUE ...]                      resume a sweep as it was launched
  {launch} ls                                        list the sweeps that were launched
  {launch} NAME action=ACTION [KEY=VALUE ...]        something else, of a NAME or sweep=FILE:
{actions}
  An action of your own: action=my_module.my_action, a function (context: spectral_mup.cli.context.Context) -> exit code.

Presets (files under conf/ and sweeps/):
{presets}

Examples:
  {launch} default 'sweep.width=[64,128,256,512]' yes       add a width to a sweep; only its runs are trained
  {launch} sweep=default optimizer=muon sweep.name=muon     another optimizer
  {launch} 'sweep.lr=[-9,-8,-7,-6,-5,-4]' lr.adaptive=false sweep.name=grid
  {launch} data=text data.path=/path/to/book.txt sweep.name=book
  {launch} action=prepare prepare.input=stories.jsonl prepare.out=tokens prepare.tokenizer=bpe
  {launch} action=prepare prepare.input=hf:Skylion007/openwebtext prepare.out=owt prepare.tokenizer=gpt2
  {launch} data=prepared data.path=/path/to/tokens sweep.name=stories
  {launch} action=derive optimizer=other optimizer.name=mine optimizer.algorithms.other.target=package.Class
  {launch} sweep.tune=optimizer.weight_decay.hidden 'sweep.lr=[-6]' sweep.name=decay        another key than lr
  {launch} optimizer=muon 'sweep.tune=[lr,optimizer.adamw.lr]' sweep.name=partner            two keys by turns
  {launch} 'sweep.width=[64]' 'sweep.steps=[200,800,1600]' sweep.name=longer                 over steps; or batch_size
  {launch} sweep=default cluster=slurm cluster.partition=gpu cluster.time=480
  {launch} sweep=mini/width optimizer=muon 'rule=[spectral,zheng,standard]'
  {launch} sweep=default action=recipe target.width=8192 target.depth=32   once analysed; writes results/default/recipe.json
  {launch} action=explain 'rule=[spectral,tensor_programs_v]' 'sweep.width=[256]'

Any key of conf/config.yaml and its groups can be given as KEY=VALUE; learning rates, and values of sweep.tune, are log2.
NAME is sweep.name, recorded with all words in results/NAME/sweep.json; under another config it is refused, unless with `yes`.
`watch` and `yes` are short for watch=true and yes=true, `ls` for action=ls. A launch may be stopped or killed at any moment:
the same command resumes, and no run is trained twice. Ctrl-C saves and stops; a second one kills what does not. While it
trains, a terminal shows the best lr of every curve so far and the time left until the verdicts; without one, a line per run
does. NO_COLOR=1 leaves colours out.
Then: {analyze} NAME for verdicts on screen, and figures and tables under results/NAME.
Exit codes: 0 all done, or submitted · 1 some runs failed · 2 bad input, nothing started · 3 refused: held back,
not confirmed, or another sweep's name · 4 SLURM or W&B refused or gave no answer, what was submitted stays · 130 interrupted.
"""

ANALYZE_HELP = """\
Collect a sweep's runs and judge whether the best learning rate transfers.

  {analyze} NAME [KEY=VALUE ...] [--check]             judge one sweep that was launched; or sweep=FILE and all its words
  {analyze} --summary FOLDER [NAME ...] [--check]      set the sweeps judged so far side by side

NAME stands for all that a sweep was launched with; {launch} ls lists them. It trains nothing, reads the run folders,
and works while a sweep still runs.
On screen, one line per rule: transfers | drifts | costs | undecided (limits: verdict.slope, verdict.regret), the slope of log2
optimal lr against log2 width and its 95 % interval, the regret at the largest width when the base's optimum is used there, and
whether feature norms are flat over width; of what is undecided, the one thing that would decide it.
Where only sweep.depth varies, the same over depth (layers). Where both vary, each is judged at the base of the other, and one
line per rule says where in the grid of width and depth the base's lr costs most. Over sweep.steps and sweep.batch_size the base
model is judged, which is the same under every rule. What is said of lr is said of the key that sweep.tune names.

Under results/NAME:
  report.html                    all of it on one page that needs nothing else: to read, print or send
each as .pdf .svg .png, with its caption as .txt and the data drawn as .csv:
{figures}
  figures.only=[NAME,my_module.my_figure] chooses among them, or adds one of your own (spectral_mup.analysis.figures).
  figures.width=3.25 figures.font=serif figures.labels={{spectral: ours}} ... fit them to a paper; --summary takes them too.
and
  curves.csv optima.csv features.csv verdicts.json
  depth/ steps/ batch_size/      where several vary: all of it over each, while the rest above is over the first of them
  KEY/                           where sweep.tune names two: all of it for the second, while the rest above is for the first

--summary reads the results of every sweep below FOLDER, as in --summary results/mini/width, and no run. Rows: in alphabetical
order of optimizer, or those of the NAMEs (optimizers or folders) in their order. Into FOLDER:
  summary.csv summary.tex        one row per sweep and rule: verdict, slope, regret, sizes, seeds, runs; the .csv has features,
                                 optimum and loss at every size, command and commit too, the .tex is a tabular of booktabs
  forest.pdf .svg .png           one line per sweep and rule: slope and interval against the tolerance, verdict, regret;
                                 in grey the slopes of FOLDER/published.csv, if it exists, with the columns
                                 optimizer,family,axis,rule,slope,source,note
  transfer.pdf .svg .png         one panel per optimizer: losses under the rule that is tested, verdict, slope, regret
  summary.pdf .svg .png          one row per sweep: losses under each rule, optimum against size, slope, verdict, regret;
                                 where families or axes differ, one of each: summary_nanogpt_width.* and so on
  forest.csv transfer.csv summary_figure.csv   what is drawn (of summary_nanogpt_width.*: summary_nanogpt_width.csv)

--check turns the verdicts into the exit code: 0 if every rule but the controls (standard*) transfers, no feature fails and
no run is missing, over width and depth where they vary, and all runs are of one code, else 5. Other exit codes: 0 written ·
2 bad input · 3 refused: NAME is another sweep's.
"""


def help_of(command: str, program: str) -> str:
    """Return what `launch --help` or `analyze --help` prints."""
    actions = table([[f"action={name}", action.help] for name, action in ACTIONS.items()], indent=4)
    presets = table([[f"{group}=", ", ".join(options(group))] for group in GROUPS], indent=2)
    return {"launch": LAUNCH_HELP, "analyze": ANALYZE_HELP}[command].format(
        launch=program.format("launch"), analyze=program.format("analyze"), actions="\n".join(actions),
        presets="\n".join(presets), figures=textwrap.indent(figure_help(), "  "),
    )  # fmt: skip
