"""A preset is called as its file is, and a user's own folder counts before the package's."""

import shutil
import sys

import pytest

from spectral_mup.config.cluster import SlurmConfig
from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.config.optimizer_spec import resolve_optimizer, resolve_rule
from spectral_mup.config.presets import options, read_preset
from spectral_mup.util import system
from spectral_mup.util.system import package_root


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """conf/ of an empty working directory, with folders for presets."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for group in ("optimizer", "rule", "model", "cluster"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "sweeps").mkdir()
    return tmp_path / "conf"


def test_a_copied_rule_is_a_rule_of_its_own(conf):
    """Whatever @package line stands on top of it."""
    text = (package_root() / "conf/rule/standard.yaml").read_text()
    (conf / "rule/mine.yaml").write_text(text.replace("d_head: -0.5", "d_head: -0.25"))
    (conf / "rule/marked.yaml").write_text("# @package rule.spectral\n" + text)
    rules = load_config(["rule=[spectral,mine,marked]"]).rule
    assert list(rules) == ["spectral", "mine", "marked"] and rules["spectral"].scaling == "derived"
    assert rules["mine"].multipliers == {"attention": {"d_head": -0.25}}
    assert rules["marked"] == load_config(["rule=[standard]"]).rule["standard"]
    assert resolve_rule("mine").multipliers == {"attention": {"d_head": -0.25}} and resolve_rule("mine").name == "mine"


def test_names_come_from_files_and_extend_others(conf):
    (conf / "optimizer/gentle.yaml").write_text("defaults: [muon]\nalgorithms:\n  muon: {lr: 0.5}\n")
    (conf / "rule/derived").mkdir()
    (conf / "rule/derived/gentle.yaml").write_text("defaults: [spectral]\nsource: here\n")
    (conf / "cluster/slurm.yaml").write_text("defaults: [slurm]\npartition: gpu\n")  # over the package's of the same name
    config = load_config(["optimizer=gentle", "rule=[derived/gentle]", "cluster=slurm"])
    assert (config.optimizer.name, config.optimizer.hidden, config.optimizer.readout) == ("gentle", "muon", "adamw")
    assert config.optimizer.algorithms["muon"].lr == 0.5 and config.rule["derived/gentle"].scaling == "derived"
    assert isinstance(config.cluster, SlurmConfig)
    assert config.cluster.partition == "gpu" and config.cluster.retries == 5
    assert resolve_optimizer("gentle").by_kind["hidden"].lr == 0.5
    assert load_config(["sweep=lamb"]).sweep.name == "lamb" and load_config([]).data.source == "shakespeare"
    assert load_config(["model=llama2"]).model.family == "llama2"
    (conf / "cluster/round.yaml").write_text("defaults: [about]\n")
    (conf / "cluster/about.yaml").write_text("defaults: [round]\n")
    with pytest.raises(ConfigError, match="conf/cluster/about.yaml: its defaults lead back to itself"):
        load_config(["cluster=round"])


def test_a_misspelt_preset_is_answered_with_the_nearest_a_users_own_included(conf):
    (conf / "rule/my_table.yaml").write_text("defaults: [spectral]\n")
    assert "my_table" in options("rule") and "derived/x" not in options("rule")
    for ask in (lambda: load_config(["rule=[my_tabel]"]), lambda: resolve_rule("my_tabel")):
        with pytest.raises(
            ConfigError, match="^rule=my_tabel: no such file; did you mean my_table. .*completep.*zheng"
        ) as error:
            ask()
        assert "\n" not in str(error.value)
    assert not any(name.startswith("results") for name in options("sweep")) and "mini/width" in options("sweep")


BROKEN = {
    ("rule", "source: [x\n"): r"conf/rule/mine.yaml, line \d+: not valid YAML",
    ("rule", "- spectral\n"): "conf/rule/mine.yaml: must hold",
    ("rule", "defaults: [spectral]\nscale: derived\n"): r"^rule.mine.scale: .*rule.mine.scaling.*rule/mine.yaml",
    ("rule", "multipliers: {}\nscaling: derived\n"): r"^rule.mine.source: a value is missing.*conf/rule/mine.yaml",
    ("rule", "defaults: [spectral]\nscaling: {lr: {adamw: {hiden: {}}}}\n"): r"^rule.mine.scaling.lr.adamw.hiden: .*hidden",
    ("rule", "defaults: [spectral]\nscaling: derive\n"): r"^rule.mine.scaling=derive: must be one of derived.*mine.yaml",
    ("optimizer", "defaults: [adamw]\nhiden: adamw\n"): r"^optimizer.hiden: .*optimizer.hidden.*optimizer/mine.yaml",
    ("optimizer", "defaults: [adamw]\nalgorithms: {adamw: {eps: -1}}\n"): r"^optimizer.algorithms.adamw.eps=-1: .*mine.yaml",
    ("optimizer", "defaults:\n- override /model: llama2\n"): "optimizer/mine.yaml: defaults must list names",
    ("model", "defaults: [nanogpt]\nrope: 1\n"): r"^model.rope: unknown key.*bias.*conf/model/mine.yaml",
    ("model", "defaults: [nanogpt]\nfamily: nanogtp\n"): r"^model.family=nanogtp: did you mean nanogpt",
    ("model", "defaults: [nanogpt]\nfamily: no_module.X\n"): r"^model.family=no_module.X: cannot be imported.*mine.yaml",
    ("model", "defaults: [nanogpt]\nfamily: pathlib.Path\n"): r"^model.family=pathlib.Path: must be a subclass",
    ("cluster", "partition: gpu\n"): r"^cluster.scheduler: a value is missing.*conf/cluster/mine.yaml",
    ("cluster", "defaults: [slurm]\nname: mine\n"): r"^cluster.name: unknown key.*conf/cluster/mine.yaml",
}  # fmt: skip


NO_SWEEP = {  # a typo in a sweep's file
    "sweep: default\n": r"^sweep=default: must be a table, .*sweeps/mine.yaml",
    "sweep:\n- width\n": r"^sweep=\['width'\]: must be a table, .*sweeps/mine.yaml",
    "sweep: {widht: [64]}\n": r"^sweep.widht: unknown key; did you mean sweep.width.*sweeps/mine.yaml",
    "sweep: {tune: [[1]]}\n": r"sweep.tune=.*: give a key, two of them",
    "sweep: &a [*a]\n": r"^sweeps/mine.yaml: nested without end",
    "defaults: default\n": r"^sweeps/mine.yaml: defaults: must be a list, as in \[mini/width, override /optimizer: muon\]$",
    "defaults: [3]\n": r"^sweeps/mine.yaml: defaults: 3 is neither the name of a sweep nor a choice, as in 'override /",
    "defaults: [mine]\n": r"^sweep=mine: the defaults of a file lead back to itself",
    "defaults: [{'': ''}]\n": r"^sweeps/mine.yaml: defaults: {'': ''} is neither",
    "defaults: [{a: b, c: d}]\n": r"^sweeps/mine.yaml: defaults: {'a': 'b', 'c': 'd'} is neither",
    "defaults: [{model: llama2}]\n": r"^sweeps/mine.yaml: defaults: {'model': 'llama2'} .* 'override /model: llama2'$",
    "defaults: [{override /modle: llama2}]\n": r"^sweeps/mine.yaml: defaults: .* 'override /model: llama2'$",
    "defaults: [{override /model: llama}]\n": r"^model=llama: no such file; did you mean llama2",
    "hydra: null\n": r"^hydra: unknown key; known: action.*\(in sweeps/mine.yaml\)$",
    "hydra: {run: {dir: x}}\n": r"^hydra: unknown key",
    "trian: {steps: 3}\n": r"^trian: unknown key; did you mean train\? .*\(in sweeps/mine.yaml\)$",
    "sweep: {name: '${optimizer.nme}'}\n": r"^sweep.name: \${optimizer.nme} is not a key .*; did you mean \${optimizer.name}\? "
    r"\(in sweeps/mine.yaml\)$",
}


@pytest.mark.parametrize("text", NO_SWEEP)
def test_a_mistake_in_a_sweep_is_one_line(conf, text):
    (conf.parent / "sweeps" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=NO_SWEEP[text]) as error:
        load_config(["sweep=mine"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group, text", BROKEN)
def test_a_mistake_in_a_file_names_file_and_key(conf, group, text):
    (conf / group / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=BROKEN[group, text]) as error:
        load_config([f"{group}=mine" if group != "rule" else "rule=[mine]"])
    assert "\n" not in str(error.value)


def test_what_the_command_line_sets_is_not_blamed_on_a_file(conf):
    (conf / "optimizer/mine.yaml").write_text("defaults: [adamw]\n")
    with pytest.raises(ConfigError, match="eps=-1: must be positive$"):
        load_config(["optimizer=mine", "optimizer.algorithms.adamw.eps=-1"])


def test_an_installed_package_has_its_presets_beside_it(tmp_path, monkeypatch):
    """As a wheel lays them out, with no checkout around; a working directory without conf/ changes nothing."""
    installed = tmp_path / "site-packages" / "spectral_mup"
    for part in ("conf", "sweeps"):
        shutil.copytree(package_root() / part, installed / part, ignore=shutil.ignore_patterns("results"))
    monkeypatch.setattr(system, "__file__", str(installed / "util" / "system.py"))
    monkeypatch.chdir(tmp_path)
    assert package_root() == installed
    assert read_preset("optimizer", "muon")["hidden"] == "muon" and load_config(["sweep=lamb"]).optimizer.name == "lamb"
    (installed / "conf/rule/only_here.yaml").write_text("defaults: [spectral]\n")
    assert "only_here" in options("rule")  # the control: it is these files that are read
