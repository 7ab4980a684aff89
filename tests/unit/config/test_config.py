"""Bad input is one line that names key and fix, exit code 2, and writes nothing."""

import json
import math
import subprocess
import sys

import pytest
from pydantic import ValidationError
from support import ROOT

from spectral_mup.config.compose import ConfigError, check, load_config, typed
from spectral_mup.config.presets import options
from spectral_mup.config.schema import Config, to_plain
from spectral_mup.models.configs import Llama2Config

BAD = {
    ("model.widht=3",): "model.widht: unknown key; .*known: .*head_size",
    ("cluster=slurm", "cluster.extra={hold: true}"): "cluster.extra: .*as in '\\+cluster.extra=",
    ("cluster=slurm", "cluster.pack_minute=3"): "cluster.pack_minute: unknown key; did you mean cluster.pack_minutes",
    ("cluster.memory=3G",): "cluster.memory: only with cluster=slurm",
    ("sweep.widths=[64]",): "sweep.widths: unknown key; did you mean sweep.width",
    ("+train.momentum=0.9",): "train.momentum: unknown key",
    ("sweep=nope",): "sweep=nope: no such file; sweep can be .*default",
    ("optimizer.algorithms.adamw.target=tochr.optim.AdamW",): "target=tochr.optim.AdamW: no package 'tochr' is installed",
    ("train.steps=many",): "train.steps=many: must be a whole number",
    ("train.steps=1.5",): "train.steps=1.5: must be a whole number",
    ("train.steps=???",): "train.steps: a value is missing; give one",
    ("data=text",): "data.path: a value is missing; give one",
    ("sweep.width=[]",): "sweep.width: the grid is empty",
    ("sweep.lr=[]",): "sweep.lr: the grid is empty",
    ("sweep.seed=[]",): "sweep.seed: the grid is empty",
    ("sweep.width=[64,64]",): "sweep.width=.*listed twice",
    ("sweep.width=[64,100]",): "sweep.width: 100 is not a multiple of model.head_size=32",
    ("model.heads=3", "model.head_size=null"): "sweep.width: 64 is not a multiple of model.heads=3",
    ("model.heads=2",): "model.heads, model.head_size: give exactly one",
    ("model=llama2", "model.head_size=1"): "sweep.width: .*even head size, but width 64 gives 1",
    ("model=llama2", "model.kv_ratio=0.3"): "model.kv_ratio=0.3: .*1.2 .* 4 query heads at width 64",
    ("model=llama2", "model.kv_ratio=null", "model.kv_heads=3"): "model.kv_heads=3: .*divides 4",
    ("model=llama2", "model.kv_heads=2"): "model.kv_heads, model.kv_ratio: give at most one",
    ("model=llama2", "model.bias=true"): "model.bias: only with model=nanogpt",
    ("model=llama2", "model.rope_base=null"): "model.rope_base=null: must be a number",
    ("model.kv_heads=1",): "model.kv_heads: only with model=llama2",
    ("model.mlp_hidden=100",): "model.mlp_ratio, model.mlp_hidden: give exactly one",
    ("model.mlp_ratio=-1",): "model.mlp_ratio=-1: must be positive",
    ("sweep.base_width=96",): "sweep.base_width=96: no run of .* can be compared with it",
    ("sweep.base_width=512",): "sweep.base_width=512: no run of",
    ("sweep.lr=[0.001]",): "sweep.lr: 0.001 is not a multiple of 1/4; learning rates are log2",
    ("sweep.lr=[1.e-3,-2]",): "sweep.lr: 0.001 is not a multiple",
    ("train.accumulate=3",): "train.accumulate=3: train.batch_size=.* is not a multiple",
    ("train.devices=0",): "train.devices=0: must be at least 1",
    ("train.devices=3",): "train.devices=3: train.batch_size=.* is not a multiple",
    ("train.shard=true",): "train.shard=true: needs more than one device, as in train.devices=2",
    ("train.warmup=5000",): "train.warmup=5000: not below train.steps",
    **dict.fromkeys(
        (("train.warmup=1.5",), ("train.warmup=-1",), ("train.warmup=-0.1",), ("train.warmup=true",), ("train.warmup=long",)),
        "train.warmup=.*: must be a fraction of train.steps below 1, as in 0.1, or a whole number of steps",
    ),
    ("train.schedule=step",): "train.schedule=step: must be one of linear, cosine, constant",
    ("train.precision=fp16",): "train.precision=fp16: must be one of",
    ("optimizer.hidden=lion",): "optimizer.hidden=lion: no such algorithm",
    ("optimizer.algorithms.adamw.update_norm.m_out=big",): "optimizer.algorithms.adamw.update_norm.m_out=big: must be a number",
    ("+rule.standard.multipliers.logits.m_widht=-1",): "multipliers.logits.m_widht: unknown key; did you mean .*m_width",
    ("+rule.standard.scaling.init_std.hidden.fan_in=-1",): "rule.standard.scaling.init_std.hidden.fan_in: unknown key; .*m_in",
    ("+optimizer.algorithms.adamw.update_norm.width=1",): "optimizer.algorithms.adamw.update_norm.width: unknown key",
    ("+optimizer.algorithms.adamw.lr_shape.m_in=1",): "optimizer.algorithms.adamw.lr_shape.m_in: unknown key",
    ("lr.resolution=0.3",): "lr.resolution=0.3: not a multiple of 1/4",
    ("train.steps=0",): "train.steps=0: must be at least 1",
    ("model.tied=true", "rule=[spectral_readout]"): "rule=spectral_readout: scales the readout",
    ("model.tied=true", "rule=[tensor_programs_v]"): "rule=tensor_programs_v: scales the readout",
    ("+model.init_std.vector=1",): "model.init_std.vector: unknown key",
    ("probe.steps=[0]",): "probe.steps=0: must be at least 1",
    ("sweep.name=../up",): "sweep.name=../up: must be a relative path",
    ("optimizer=lamb", "model.init_std.readout=0"): "rescales its step to the weight's norm.*optimizer.readout=lamb_vector",
}  # fmt: skip

BAD |= {  # values that would train, or fail one run after the other
    ("optimizer.weight_decay.hidden=-1",): "optimizer.weight_decay.hidden=-1: must be at least 0",
    ("optimizer=adopt", "optimizer.algorithms.adopt.eps=-1"): "optimizer.algorithms.adopt.eps=-1: must be positive",
    ("optimizer=adopt", "optimizer.algorithms.adopt.eps=0"): "optimizer.algorithms.adopt.eps=0: must be positive",
    ("optimizer=adopt", "+optimizer.algorithms.adopt.args.eps=-1"): "adopt.args=.*eps=-1 must be positive",
    ("optimizer=muon", "optimizer.algorithms.muon.args.momentum=1.5"): "muon.args=.*momentum=1.5 must be in",
    ("optimizer=muon", "optimizer.algorithms.muon.args.momentum=fast"): "muon.args=.*momentum=fast must be in",
    ("optimizer.algorithms.adamw.args.betas=[0.9,1.0]",): r"adamw.args=.*betas=\[0.9, 1.0\] must be numbers in",
    ("optimizer.algorithms.adamw.args.betas=0.9",): "adamw.args=.*betas=0.9 must be numbers in",
    ("+optimizer.algorithms.adamw.args.lr=1",): "adamw.args=.*lr: is set by the sweep",
    ("optimizer.algorithms.adamw.lr=0",): "optimizer.algorithms.adamw.lr=0: must be positive",
    ("optimizer.algorithms.adamw.lr=true",): "optimizer.algorithms.adamw.lr=true: must be a number",
    ("+optimizer.weight_decay.hiden=1",): "optimizer.weight_decay.hiden: unknown key; did you mean .*hidden",
    ("train.clip=0",): "train.clip=0: must be positive",
    ("train.final_lr=-1",): "train.final_lr=-1: must be at least 0",
    ("train.diverge_factor=inf",): "train.diverge_factor=inf: must be a finite number",
    ("model.dropout=1",): "model.dropout=1: must be below 1",
    ("model.init_std.hidden=-0.1",): "model.init_std.hidden=-0.1: must be at least 0",
    ("train.shard=maybe",): "train.shard=maybe: must be true or false",
    ("cluster.threads=true",): "cluster.threads=true: must be a number",
    ("cluster.per_gpu=some",): "cluster.per_gpu=some: must be auto, or a number from 1 on",
    ("cluster.per_gpu=0",): "cluster.per_gpu=0: must be auto, or a number",
    ("cluster.per_gpu=true",): "cluster.per_gpu=true: must be auto, or a number",
    ("probe=null",): "probe=null: must be a table",
    ("derive.steps=7",): "derive.steps=7: must be at least 8",
    ("cluster=slurm", "cluster.retries=-1"): "cluster.retries=-1: must be at least 0",
    ("cluster.scheduler=pbs",): "cluster.scheduler=pbs: must be one of local, slurm",
    ("optimizer.algorithms.adamw.epss=1",): "optimizer.algorithms.adamw.epss: unknown key; did you mean .*eps",
}  # fmt: skip


@pytest.mark.parametrize("overrides", BAD, ids=" ".join)
def test_bad_input_names_key_and_fix(overrides):
    with pytest.raises(ConfigError, match=BAD[overrides]) as error:
        load_config(list(overrides))
    assert "\n" not in str(error.value)


def test_good_input_passes():
    for overrides in (
        [],
        *[[f"optimizer={name}"] for name in options("optimizer") if name != "other"],
        ["train.compile=true"],
        ["optimizer=lamb", "model.init_std.readout=0", "optimizer.readout=lamb_vector"],
        ["sweep.base_width=1", "model.heads=2", "model.head_size=null"],
    ):
        load_config(overrides)
    assert load_config(["train.compile=true"]).train.compile == "true"
    assert load_config(["sweep.name=16", "train.clip=1"]).sweep.name == "16"
    chosen = load_config(["figures.only=[lr_transfer,my_module.mine]", "probe.quantities=[update_stable_rank]"])
    assert chosen.figures.only == ["lr_transfer", "my_module.mine"] and chosen.probe.quantities == ["update_stable_rank"]


def test_plain_dicts_and_back():
    """What a submission keeps is the same config; every number has the type that the run ids are made of."""
    for overrides in ([], ["cluster=slurm", "model=llama2", "optimizer=muon", "rule=[zheng,standard_fixed]", "train.clip=1"]):
        config = load_config(overrides)
        plain = json.loads(json.dumps(to_plain(config)))
        assert typed(plain) == config and type(typed(plain).cluster) is type(config.cluster)
    assert type(config.train.clip) is float and config.rule["standard_fixed"].scaling == {}
    with pytest.raises(ValidationError, match="frozen"):
        config.train.steps = 1  # type: ignore[misc]


def test_several_devices_share_a_batch_evenly():
    config = load_config(["train.batch_size=12", "train.accumulate=2"])
    cluster = config.cluster.model_copy(update={"scheduler": "slurm"})

    def shared(devices: int, shard: bool) -> Config:
        return config.model_copy(
            update={"cluster": cluster, "train": config.train.model_copy(update={"devices": devices, "shard": shard})}
        )

    for devices, shard in ((1, False), (2, True), (3, False), (6, True)):
        check(shared(devices, shard))
    with pytest.raises(ConfigError, match="train.devices=4: train.batch_size=12 is not a multiple of it times .*accumulate=2"):
        check(shared(4, False))
    on_slurm = ["cluster=slurm", "cluster.gpus=2", "train.devices=2", "train.shard=true", "optimizer=sgd"]
    with pytest.raises(ConfigError, match="train.shard=true: not with the fused sgd; set optimizer.algorithms.sgd.args.fused"):
        load_config(on_slurm)
    load_config([*on_slurm, "optimizer.algorithms.sgd.args.fused=false"])


@pytest.mark.parametrize("sweep", options("sweep"))
def test_every_sweep_takes_every_optimizer_and_rule(sweep):
    """But for those of one optimizer alone. Sophia stands for the entrywise, Muon for those with a partner."""
    own = sweep.startswith("lamb")
    for optimizer in ("lamb",) if own else ("sophia", "muon"):
        tied = sweep.startswith("paper/nanogpt")  # then a table that scales the readout itself is refused, as it must be
        table = ["rule=[spectral,standard]"] if tied else ["rule=[spectral,zheng]"]
        config = load_config([f"sweep={sweep}", f"optimizer={optimizer}", "data=pydoc", *([] if own else table)])
        assert own or sweep in ("default", "smoke") or config.sweep.name.endswith(optimizer)  # no two share a folder of results
    if not own:
        with pytest.raises(ValueError, match="no lr for optimizer lion"):  # the control: a rule that does not cover one
            load_config([f"sweep={sweep}", "optimizer=lion", "rule=[qiu]", "data=pydoc"])


def test_sweeps_of_the_paper_are_as_printed():
    """arXiv 2602.20937: sizes, tokens a step, schedule, and every printed lr within an eighth of an octave of the grid's."""
    printed = {
        "nanogpt_width": ([128, 256, 512, 1024, 2048], [8], 8192, (2e-5, 2e-4, 2e-3, 2e-2, 7e-2, 2e-1)),
        "nanogpt_depth": ([256], [2, 4, 8, 16, 32, 64], 8192, (2e-5, 2e-4, 2e-3, 2e-2, 5e-2, 2e-1)),
        "llama2_width": ([128, 256, 512, 1024, 2048], [16], 786432,
                         (5e-4, 1e-3, 5e-3, 1e-2, 3e-2, 5e-2, 7e-2, 1e-1, 0.2, 0.3, 0.5)),
    }  # fmt: skip
    for name, (width, depth, tokens, lrs) in printed.items():
        config = load_config([f"sweep=paper/{name}", "data=pydoc"])
        assert (config.sweep.width, config.sweep.depth) == (width, depth)
        assert config.train.batch_size * config.model.context == tokens
        assert len(lrs) == len(config.sweep.lr) and not config.lr.adaptive
        assert all(abs(math.log2(lr) - x) <= 0.126 for lr, x in zip(lrs, config.sweep.lr, strict=True)), name
    llama, t = config.model, config.train
    assert isinstance(llama, Llama2Config)
    assert (llama.heads, llama.kv_heads, llama.mlp_hidden, llama.tied) == (32, 8, 11008, False)
    assert (t.steps, t.warmup, t.schedule, config.optimizer.weight_decay["hidden"]) == (1026, 51, "cosine", 0.1)


def launch(*overrides: str, script: str = "launch.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / script, *overrides], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", ["launch.py", "analyze.py"])
def test_command_line_exits_2_and_writes_nothing(tmp_path, script):
    paths = [f"paths.runs={tmp_path / 'runs'}", f"paths.results={tmp_path / 'results'}"]
    for bad in ("sweep.widht=[64]", "data.source=nowhere", "sweep.width=[]"):
        done = launch(*paths, bad, script=script)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_corpus_names_alternatives(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from spectral_mup.data import sources\n"
        "sources.PLAYS = pathlib.Path('nowhere.zip')\n"
        "sys.argv = ['launch.py', 'paths.runs=%s']\n"
        "import runpy; runpy.run_path('launch.py', run_name='__main__')" % (tmp_path / "runs")
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "nowhere.zip" in done.stderr and "data=text" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_plan_and_help_import_no_torch():
    code = (
        "import sys, runpy; sys.argv = ['launch.py', *%r]\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit as e: print('exit', e.code, 'torch' in sys.modules, 'pandas' in sys.modules)"
    )
    for argv in (["data=pydoc", "action=plan"], ["--help"]):
        done = subprocess.run([sys.executable, "-c", code % (argv,)], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1] == "exit 0 False False", done
    explain = subprocess.run(
        [sys.executable, "-c", code % (["data=pydoc", "action=explain"],)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert explain.stdout.splitlines()[-1] == "exit 0 True False", explain  # the control: what needs torch is seen to import it
