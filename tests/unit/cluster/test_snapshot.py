"""A job runs the code that was launched, and no other: what is in a snapshot, when it is trusted, how it is entered."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from spectral_mup.cluster.slurm import snapshot
from spectral_mup.cluster.slurm.script import ENTRY
from spectral_mup.cluster.slurm.snapshot import check_size, code_files, code_now, is_intact, matches, snapshot_code
from spectral_mup.errors import ConfigError


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"WHERE = 'launched'  # {name}\n")


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The user's folder, which is the working directory."""
    folder = tmp_path / "user"
    write(
        folder,
        "my_optimizer.py",
        "conf/rule/mine.yaml",
        "sweeps/mine.yaml",
        "sweeps/results/large.py",
        "runs/r/big",
        "lib/x.py",
    )
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package that is installed, so that copies are quick."""
    folder = tmp_path / "site-packages" / "spectral_mup"
    write(folder, "__init__.py", "conf/config.yaml", "sweeps/default.yaml", "cluster/local.py", "__pycache__/x.pyc")
    monkeypatch.setattr(snapshot, "PACKAGE", folder)
    return folder


USER_FILES = {"user/my_optimizer.py", "user/conf/rule/mine.yaml", "user/sweeps/mine.yaml"}


# --- what is in it ----------------------------------------------------------------------------------------------------


def test_of_a_checkout_its_sources_and_of_another_folder_the_user_s_own(user, monkeypatch):
    _, files = code_now()
    assert USER_FILES | {"src/spectral_mup/__init__.py", "conf/config.yaml", "launch.py"} <= set(files)
    assert {name for name in files if name.startswith("user/")} == USER_FILES
    assert not [name for name in files if "results/" in name or "__pycache__" in name]
    monkeypatch.chdir(ROOT)
    _, there = code_now()
    assert not [name for name in there if name.startswith("user/conf")] and "user/launch.py" in there


def test_of_an_installed_package_its_folder_with_conf_and_sweeps(user, package):
    code, files = code_now()
    assert set(files) - USER_FILES == {
        f"src/spectral_mup/{name}" for name in ("__init__.py", "conf/config.yaml", "sweeps/default.yaml", "cluster/local.py")
    }
    write(user, "second.py")
    assert code_now()[0] != code


@pytest.mark.parametrize("ignored", ["data/", "*.yaml", "*"])
def test_a_repository_around_the_source_tree_has_no_say_in_it(user, tmp_path, monkeypatch, ignored):
    """Such as one of a home folder's settings."""
    tree = tmp_path / "home" / "spectral"
    write(tree, "src/spectral_mup/__init__.py", "src/spectral_mup/data/corpus.py", "conf/config.yaml", "launch.py")
    (tmp_path / "home" / ".gitignore").write_text(f"{ignored}\n")
    monkeypatch.setattr(snapshot, "ROOT", tree)
    monkeypatch.setattr(snapshot, "PACKAGE", tree / "src/spectral_mup")
    whole = set(code_now()[1])
    assert {"src/spectral_mup/data/corpus.py", "conf/config.yaml"} <= whole
    subprocess.run(["git", "init", "-q", str(tmp_path / "home")], check=True)
    assert set(code_now()[1]) == whole
    subprocess.run(["git", "init", "-q", str(tree)], check=True)
    (tree / ".gitignore").write_text("data/\n")
    assert whole - set(code_now()[1]) == {"src/spectral_mup/data/corpus.py"}, "its own has"


def test_what_is_no_code_is_refused_by_its_name_before_it_is_read(user, package, monkeypatch):
    monkeypatch.setattr(snapshot, "_hash", lambda files: pytest.fail("files were read"))
    with (user / "sweeps/model.pt").open("wb") as f:
        f.truncate(5_000_000_000)  # no block of it is on the disk, and none is read
    with pytest.raises(ConfigError, match=r"sweeps/model.pt: of 5000 MB.*may have 100 MB"):
        snapshot_code(user / "jobs")
    (user / "sweeps/model.pt").unlink()
    for i in range(3):
        with (user / f"conf/part{i}").open("wb") as f:
            f.truncate(40_000_000 + i)
    with pytest.raises(ConfigError, match=r"conf/part2: of 40 MB"):
        check_size(code_files())
    (user / "conf/part0").unlink()
    check_size(code_files())


def test_modes_are_kept_and_links_are_not_followed_out_of_the_folder(user, package, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("c4nary")
    secret.chmod(0o600)
    (user / "sweeps/private.yaml").write_text("mine")
    (user / "sweeps/private.yaml").chmod(0o600)
    (user / "sweeps/open.sh").write_text("")
    (user / "sweeps/open.sh").chmod(0o777)
    (user / "sweeps/link.yaml").symlink_to(secret)
    (user / "sweeps/folder").symlink_to(tmp_path)
    (user / "conf/inside.yaml").symlink_to("../sweeps/private.yaml")
    before = os.umask(0)
    try:
        copy = user / "jobs/code" / snapshot_code(user / "jobs")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((copy / "user" / name).lstat().st_mode) for name in ("sweeps/private.yaml", "sweeps/open.sh")}
    assert modes == {"sweeps/private.yaml": 0o600, "sweeps/open.sh": 0o755}
    assert (copy / "user/conf/inside.yaml").read_text() == "mine" and not (copy / "user/conf/inside.yaml").is_symlink()
    assert not [p for p in copy.rglob("*") if p.is_symlink() or p.is_file() and "c4nary" in p.read_text()]
    assert not (copy / "user/sweeps/folder").exists() and not stat.S_IMODE(copy.stat().st_mode) & 0o022
    (user / "other.py").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"other.py is a link out of its folder"):
        snapshot_code(user / "jobs")


def test_where_everybody_may_write_only_one_s_own_modules_are_taken(user, package):
    write(user, "theirs.py")
    os.chown(user / "theirs.py", 65534, -1) if os.getuid() == 0 else pytest.skip("needs root to make a file of another user")
    assert "user/theirs.py" in code_now()[1], "a group's folder is one thing"
    user.chmod(0o1777)
    assert {"user/theirs.py", "user/my_optimizer.py"} & set(code_now()[1]) == {"user/my_optimizer.py"}


def test_from_where_everybody_may_write_a_job_imports_nothing(tmp_path):
    program = "import sys; from spectral_mup.config import parse; print(parse._trusted(__import__('pathlib').Path.cwd()))"
    for mode, flags, trusted in ((0o755, ["-P"], True), (0o1777, ["-P"], False), (0o1777, [], True)):
        tmp_path.chmod(mode)
        done = subprocess.run([sys.executable, *flags, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert done.stdout == f"{trusted}\n", done.stderr


# --- when it is trusted -----------------------------------------------------------------------------------------------


def spoil_missing(copy: Path) -> None:
    (copy / "user/my_optimizer.py").unlink()


def spoil_content(copy: Path) -> None:
    (copy / "src/spectral_mup/__init__.py").write_text("WHERE = 'elsewhere'\n")


def spoil_more(copy: Path) -> None:
    write(copy, "user/random.py")


def spoil_mode(copy: Path) -> None:
    (copy / "user/my_optimizer.py").chmod(0o755)


def spoil_link(copy: Path) -> None:
    """The same content, but not for long."""
    path = copy / "user/my_optimizer.py"
    path.rename(copy.parent / "moved.py")
    path.symlink_to(copy.parent / "moved.py")


def spoil_writable(copy: Path) -> None:
    (copy / "user").chmod(0o777)


def spoil_bytecode(copy: Path) -> None:
    """Which Python runs in place of a module, whatever the module says by then."""
    (copy / "src/spectral_mup/__pycache__").chmod(0o775)


def spoil_owner(copy: Path) -> None:
    if os.getuid():
        pytest.skip("needs root to make a folder of another user")
    os.chown(copy, 65534, -1)


SPOILT = [spoil_missing, spoil_content, spoil_more, spoil_mode, spoil_link, spoil_writable, spoil_bytecode, spoil_owner]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_copy_that_is_not_what_its_name_says_or_not_ours_is_not_used_again(user, package, spoil):
    jobs = user / "jobs"
    code = snapshot_code(jobs)
    write(jobs / "code" / code, "src/spectral_mup/__pycache__/x.pyc")  # of the tasks
    assert snapshot_code(jobs) == code and [p.name for p in (jobs / "code").iterdir()] == [code]
    spoil(jobs / "code" / code)
    second = snapshot_code(jobs)
    assert second == f"{code}.2" == snapshot_code(jobs) and is_intact(jobs / "code" / second)
    spoil(jobs / "code" / second)
    assert snapshot_code(jobs) == f"{code}.3"
    shutil.rmtree(jobs / "code" / code)
    assert snapshot_code(jobs) == code


def test_a_copy_is_judged_while_a_job_writes_bytecode_into_it(user, package, monkeypatch):
    """Python writes it under another name first, which is gone by the time that it is looked at."""
    code = snapshot_code(user / "jobs")
    listed = Path.rglob
    gone = "src/spectral_mup/__pycache__/x.cpython-312.pyc.140234"
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: [*listed(path, pattern), path / gone])
    assert is_intact(user / "jobs/code" / code)
    spoil_bytecode(user / "jobs/code" / code)
    assert not is_intact(user / "jobs/code" / code)  # the control


# --- how it is entered ------------------------------------------------------------------------------------------------

MODULE = """
import random, sys, my_optimizer, spectral_mup
def main(*arguments):
    print(my_optimizer.WHERE, spectral_mup.__file__, hasattr(random, "Random"), *arguments)
    return 7
"""


def enter(code: Path, here: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", str(code / ENTRY), "tell", "x y"]
    return subprocess.run(command, capture_output=True, text=True, cwd=here, timeout=60, env=dict(os.environ) | env)


@pytest.fixture
def entered(user, tmp_path, monkeypatch):
    """A snapshot of a small package with the real entry, below a path that PYTHONPATH could not hold, and a module to run."""
    tree = tmp_path / "tree"
    write(
        tree,
        "src/spectral_mup/__init__.py",
        "src/spectral_mup/cluster/__init__.py",
        "src/spectral_mup/cluster/slurm/__init__.py",
    )
    needed = "cluster/slurm/enter.py cluster/slurm/snapshot.py cluster/slurm_commands.py runs config util errors.py"
    for name in f"{needed} theory models data optim".split():
        source, target = snapshot.PACKAGE / name, tree / "src/spectral_mup" / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, target)
    (tree / "src/spectral_mup/cluster/slurm/tell.py").write_text(MODULE)
    (tree / "conf").mkdir()
    monkeypatch.setattr(snapshot, "ROOT", tree)
    monkeypatch.setattr(snapshot, "PACKAGE", tree / "src/spectral_mup")
    write(user, "random.py", "spectral_mup.py")  # in the launch folder
    jobs = tmp_path / "odd: jobs"
    return jobs / "code" / snapshot_code(jobs)


def test_a_job_imports_what_was_launched_whatever_has_changed_since(entered, user):
    (user / "my_optimizer.py").write_text("WHERE = 'changed'\n")
    for env in ({}, {"PYTHONPATH": f"{ROOT}/src"}):
        done = enter(entered, user, **env)
        said = f"launched {entered}/src/spectral_mup/__init__.py True x y\n"
        assert (done.returncode, done.stdout) == (7, said), done.stderr


def test_a_job_leaves_a_copy_that_nobody_else_can_write_to(entered, user):
    before = os.umask(0)
    try:
        assert enter(entered, user, PYTHONDONTWRITEBYTECODE="").returncode == 7
    finally:
        os.umask(before)
    assert list(entered.rglob("*.pyc")) and is_intact(entered)


@pytest.mark.parametrize("spoil", [spoil_missing, spoil_content, spoil_more, spoil_link])
def test_a_task_refuses_a_snapshot_that_is_not_what_was_launched(entered, user, spoil):
    spoil(entered)
    done = enter(entered, user)
    assert done.returncode == 1 and "launch again" in done.stderr and not done.stdout
    assert not matches(entered)


def test_a_task_refuses_code_that_was_imported_from_elsewhere(entered, user, tmp_path):
    """As a site's start-up hook may do; and without its snapshot there is nothing to run."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import spectral_mup\n")
    done = enter(entered, user, PYTHONPATH=str(hook))
    assert done.returncode == 1 and "not the code that was launched" in done.stderr and not done.stdout
    shutil.rmtree(entered)
    assert enter(entered, user).returncode == 2
