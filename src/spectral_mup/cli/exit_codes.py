"""Exit codes of every command; `--help` lists them."""

OK = 0
FAILED = 1  # some runs failed
BAD_INPUT = 2  # nothing was started
REFUSED = 3  # held back, or not confirmed
NO_ANSWER = 4  # SLURM or W&B refused or gave no answer
CHECK_FAILED = 5  # analyze --check
INTERRUPTED = 130
