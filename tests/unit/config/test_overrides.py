"""What a newcomer mistypes: one line that says what was meant, in words of this project."""

import re

import pytest

from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.config.overrides import known_keys, unknown

MISTYPED = {
    # a choice
    ("rule=[mup]",): r"rule=mup: no such file; did you mean spectral\? rule can be .*spectral.*zheng",
    ("rule=muP",): "rule=muP: no such file; did you mean spectral",
    ("rule=spectral,standard",): r"rule=spectral,standard: write several values as a list, as in 'rule=\[spectral,standard\]'",
    ("rule=",): "rule=: give a name; rule can be adamw_decay_0, ",
    ("rule=[]",): r"rule=\[\]: give a name; rule can be",
    ("rule=null",): "rule=null: give a name",
    ("~rule",): "~rule: cannot be left out; rule can be",
    ("optimizer=adam",): r"optimizer=adam: no such file; did you mean adamw\? optimizer can be adamw, adopt, lamb, lion, muon",
    ("optimizer=[adamw,muon]",): r"optimizer=\[adamw,muon\]: takes one; launch a sweep for each, as in optimizer=adamw",
    ("optimizer=adamw,muon",): "optimizer=adamw,muon: takes one",
    ("optimizer.name=muon",): "optimizer.name=muon: gives a name alone; to train with it choose optimizer=muon",
    ("model=gpt2",): r"model=gpt2: no such file; did you mean nanogpt\?",
    ("cluster=SLURM",): r"cluster=SLURM: no such file; did you mean slurm\?",
    ("sweep=sweeps/smoke.yaml",): "sweep=sweeps/smoke: no such file; did you mean smoke",
    ("train=5",): "train=5: give a name; train can be default",
    # a key
    ("lr=1e-3",): r"lr=1e-3: must be a table, or one of its keys: lr.adaptive.*; .* are log2, as in 'sweep.lr=\[-10\]'",
    ("lr=-7",): r"lr=-7: .* as in 'sweep.lr=\[-7\]'",
    ("wandb=online",): "wandb=online: must be a table, or one of its keys: wandb.mode, wandb.project",
    ("modl=llama2",): "modl: unknown key; did you mean model",
    ("model.depth=4",): r"model.depth: unknown key; did you mean sweep.depth\?",
    ("width=64",): r"width: unknown key; did you mean sweep.width\?",
    ("steps=10",): r"steps: unknown key; did you mean train.steps\?",
    ("step=10",): r"step: unknown key; did you mean train.steps\?",
    ("seeds=[0]",): r"seeds: unknown key; did you mean sweep.seed\?",
    ("sweep.seeds=[0]",): r"sweep.seeds: unknown key; did you mean sweep.seed\?",
    ("train.step=10",): r"train.step: unknown key; did you mean train.steps\?",
    ("optimizer.lr=1e-3",): r"optimizer.lr: unknown key; did you mean sweep.lr\?",
    ("device=cuda",): r"device: unknown key; did you mean cluster.device\?",
    ("heads=4",): r"heads: unknown key; did you mean model.heads\?",
    ("wandb.enabled=true",): "wandb.enabled: unknown key; known: mode, project",  # nothing is like it
    ("hydra.run.dir=x",): "hydra.run.dir: unknown key; known: action",
    ("hydra/job_logging=none",): "hydra/job_logging: unknown key; known: action",
    ("optimizer.weight_decay=0.1",): "optimizer.weight_decay=0.1: λ is given to a kind of .*optimizer.weight_decay.hidden=0.1",
    ("train.weight_decay=0.1",): "train.weight_decay=0.1: λ is given to a kind of tensor, as in optimizer.weight_decay.hidden",
    # a value
    ("sweep.width=64,128",): r"sweep.width=64,128: write several values as a list, as in 'sweep.width=\[64,128\]'",
    ("sweep.width=(64,128)",): r"sweep.width=\(64,128\): cannot be read; a list is written as in 'sweep.width=\[64,128\]'",
    ("sweep.width=[64,", "128]"): r"sweep.width=\[64,: cannot be read; quote what has spaces .* 'sweep.width=\[64, …\]'",
    ("sweep.width=range(64,128)",): "sweep.width=range.*: write several values as a list",
    ("sweep.width=[64,a]",): "sweep.width=a: must be a whole number",
    ("sweep.lr=[1e-3]",): r"sweep.lr: 0.001 is not a multiple of 1/4; learning rates are log2, as in 'sweep.lr=\[-10\]'",
    ("sweep.lr=1e-3",): r"sweep.lr: 0.001 is not a multiple of 1/4; learning rates are log2, as in 'sweep.lr=\[-10\]'",
    ("sweep.lr=[2^-7]",): r"sweep.lr=\[2\^-7\]: cannot be read; .* are log2, as in 'sweep.lr=\[-7\]'",
    ("sweep.tune=weight_decay",): "sweep.tune: weight_decay: unknown key; known: lr, ",
    ("train.clip=none",): "train.clip=none: must be a number; none is written null",
    ("sweep.name=${optimizer.nme}",): r"sweep.name: \${optimizer.nme} is not a key .*; did you mean \${optimizer.name}\?",
    # no key and value
    ("foo",): "foo: must be KEY=VALUE, as in train.steps=400",
    ("train.steps",): "train.steps: give it a value, as in train.steps=VALUE",
    ("--config-name=foo",): "--config-name=foo: must be KEY=VALUE",
    ("=5",): "=5: must be KEY=VALUE",
}  # fmt: skip
FOREIGN = re.compile(
    r"hydra(?!\.run|/job)|OmegaConf|omegaconf|multirun|[Ll]exer|[Ss]earch path|EOF|EQUAL|Node|not in struct|subclass of"
)


@pytest.mark.parametrize("words", MISTYPED, ids=" ".join)
def test_what_was_meant_is_said(words):
    with pytest.raises(ConfigError, match=f"^{MISTYPED[words]}") as error:
        load_config(list(words))
    assert "\n" not in str(error.value) and not FOREIGN.search(str(error.value))


def test_one_value_stands_for_a_list_of_it():
    config = load_config(["sweep.width=64", "sweep.seed=0", "sweep.lr=-7", "probe.steps=5", "figures=layers"])
    assert (config.sweep.width, config.sweep.seed, config.sweep.lr, config.probe.steps) == ([64], [0], [-7.0], [5])
    assert config.figures.only == ["layers"]


def test_a_key_of_another_part_is_meant_where_it_ends_alike():
    """The nearest beside it comes first; * stands for names that nobody has typed."""
    assert "did you mean train.warmup? " in unknown("train.warmupp") and "did you mean train.warmup? " in unknown("warmup")
    assert "did you mean" not in unknown("sweep.nothing_like_it")
    assert {"model.kv_heads", "cluster.partition", "train.steps"} <= {*known_keys()}
