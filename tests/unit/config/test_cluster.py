"""What a site's file says to SLURM is what SLURM is told, and what it must not say is refused."""

from typing import Any

import pytest
from support import ROOT
from support.runs import composed
from support.slurm_sweeps import FIXED, ON_SLURM

from spectral_mup.cluster import slurm_commands as slurm
from spectral_mup.cluster.slurm.script import slurm_of
from spectral_mup.cluster.slurm.snapshot import snapshot_config
from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.config.compose import load_config
from spectral_mup.config.parse import parse
from spectral_mup.config.presets import load_yaml
from spectral_mup.config.schema import Config
from spectral_mup.errors import ConfigError


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Function of the lines of a site's file to its config."""
    for name in slurm.FROM_SHELL.values():
        monkeypatch.delenv(name, raising=False)
    shipped = load_yaml(ROOT / "conf/cluster/slurm.yaml")

    def make(lines: str) -> Config:
        (tmp_path / "mine.yaml").write_text(f"{lines}\n")
        cluster = parse(SlurmConfig, shipped | load_yaml(tmp_path / "mine.yaml"), "cluster")
        return composed(*ON_SLURM, *FIXED).model_copy(update={"cluster": cluster})

    return make


@pytest.mark.parametrize(
    "written, minutes",
    [
        ("240", 240), ("4:00:00", 240), ("90:00", 90), ("1:30", 2), ("0:02:01", 3), ("2-0", 2880), ("1-12:30", 2190),
        ("1-00:00:01", 1441), ("'4:00:00'", 240), ("10:00:00", 600),
    ],
)  # fmt: skip
def test_times_are_read_as_slurm_writes_them(site, written, minutes):
    assert site(f"time: {written}").cluster.time == minutes


def test_the_command_line_is_read_in_the_same_way():
    cluster: Any = load_config([*ON_SLURM, *FIXED, "cluster.time=4:00:00", "cluster.account=012345"]).cluster
    assert (cluster.time, cluster.account) == (240, "012345")


@pytest.mark.parametrize("written", ["4h", "0", "'1:2:3:4'", "-5", "true", "1-2-3"])
def test_other_times_are_refused(site, written):
    with pytest.raises(ConfigError, match=r"^cluster.time="):
        site(f"time: {written}")


@pytest.mark.parametrize("key", ["account", "partition", "qos", "constraint", "exclude"])
def test_a_name_is_what_is_written_or_it_is_refused(site, key):
    for written, name in (("012345", "012345"), ('"12345"', "12345"), ("0o17", "0o17"), ("1:30", "1:30"), ("a-1", "a-1")):
        assert getattr(site(f"{key}: {written}").cluster, key) == name
    for number in ("12345", "1e3", "1_000"):
        with pytest.raises(ConfigError, match=rf"^cluster.{key}=.*quote it"):
            site(f"{key}: {number}")


def test_numbers_are_numbers_in_every_file(tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\nb: -12\nc: 1_000\nd: 0\ne: 1e-3\nf: 2.5\ng: [1, 2]\nh: true\ni: null\nj: 007\n")
    assert load_yaml(tmp_path / "x.yaml") == {
        "a": 1, "b": -12, "c": 1000, "d": 0, "e": 1e-3, "f": 2.5, "g": [1, 2], "h": True, "i": None, "j": "007",
    }  # fmt: skip


@pytest.mark.parametrize(
    "extra, said",
    [
        ("{array: 0-3}", "array_parallelism"), ("{job-name: x}", "is ours"), ("{output: /tmp/x}", "is ours"),
        ("{time: 10}", "cluster.time"), ("{arr: 0-3}", "array_parallelism"), ("{job_name: x}", "is ours"),
        ("{--mem: 1G}", "memory"),
        ("{export: 'ALL,WANDB_API_KEY=x'}", "cluster.preamble"), ("{no-requeue: true}", "is ours"),
    ],
)  # fmt: skip
def test_options_that_are_ours_are_refused(site, extra, said):
    with pytest.raises(ConfigError, match=rf"^cluster.extra.*{said}"):
        site(f"extra: {extra}")


def test_other_options_are_passed_on_as_they_are_written(site):
    said = "{time-min: 2:00:00, reservation: 0123, mail-type: FAIL, exclusive: true, export: NONE, hold: true, comment: a}"
    assert site(f"extra: {said}").cluster.extra == {
        "time-min": "2:00:00", "reservation": "0123", "mail-type": "FAIL", "exclusive": True, "export": "NONE", "hold": True,
        "comment": "a",
    }  # fmt: skip


def test_the_shell_says_what_the_config_does_not(site, monkeypatch):
    """In the script and in the jobs' config, as sbatch's own reading of these variables would overrule both."""
    for name, value in (("ACCOUNT", "shell"), ("PARTITION", "gpu"), ("RESERVATION", "mine"), ("QOS", ""), ("TIMELIMIT", "1")):
        monkeypatch.setenv(f"SBATCH_{name}", value)
    config = site("account: file\ntime: 240")
    for cluster in (slurm_of(config).model_dump(), snapshot_config(config)["cluster"]):
        assert [cluster[key] for key in ("account", "partition", "qos", "time")] == ["file", "gpu", None, 240]
        assert cluster["extra"] == {"reservation": "mine"}
    assert slurm_of(site("extra: {reservation: other}")).extra == {"reservation": "other"}
    assert not [name for name in slurm.environment() if name.startswith("SBATCH_")]
    assert slurm_of(site("account: null")).account == "shell"


@pytest.mark.parametrize(
    "state, up",
    [("idle", True), ("mixed", True), ("allocated", True), ("idle~", True), ("completing", True), ("idle*", False),
     ("down*", False), ("drained", False), ("draining", False), ("maint", False), ("reserved", False)],
)  # fmt: skip
def test_a_node_is_up_or_it_is_waited_for(state, up):
    assert slurm.Node(state, 8, 0).up == up


def test_nodes_are_those_of_the_partition(monkeypatch):
    said = "Welcome\nmain*|n1|down*|8|gpu:a100:4(S:0-1),gpu:t4:2\nmain*|n2|idle|16|(null)\nhigh|n3|idle|8|gpu:4\n"
    monkeypatch.setattr(slurm, "_answer", lambda *command: said)
    assert slurm.nodes(None) == {"n1": slurm.Node("down*", 8, 6), "n2": slurm.Node("idle", 16, 0)}
    assert set(slurm.nodes("any")) == {"n1", "n2", "n3"}
