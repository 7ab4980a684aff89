"""What goes wrong without being a bug: one line on stderr and an exit code, never a traceback."""

import errno


class ConfigError(ValueError):
    """Bad input, found before anything was started or written. The message is one line: key, what is wrong, fix."""

    exit_code = 2


class RecordError(RuntimeError):
    """A file that contradicts itself or its folder; the message names it and the fix."""

    exit_code = 2


class Refusal(RuntimeError):
    """Not done because a rule forbids it, as with a sweep whose first runs all failed. The message says what allows it."""

    exit_code = 3


class Unanswered(RuntimeError):
    """A service that was needed (SLURM, W&B) refused or did not answer. The message says what was done until then."""

    exit_code = 4


_FIXES = {
    errno.ENOSPC: "free space on the disk, or give another path", errno.EDQUOT: "free space, or raise the quota",
    errno.EACCES: "get the permission, or give another path", errno.EPERM: "get the permission, or give another path",
    errno.EROFS: "give a path on a disk that can be written", errno.EMFILE: "raise the limit with ulimit -n",
    errno.ENOTDIR: "give another path", errno.EEXIST: "give another path", errno.ENOENT: "give another path",
    errno.EIO: "repair the disk", errno.ESTALE: "mount the disk anew",
}  # fmt: skip


def fix_of(error: OSError) -> str:
    """Return what a user does about an error of the system."""
    return _FIXES.get(error.errno or 0, "remove the cause")
