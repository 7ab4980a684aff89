"""What CONTRIBUTING.md says of adding something, done in an empty folder of a user's with exactly the files that it names."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
from support.cli import call
from support.launches import Launch

from spectral_mup.cli.context import BAD_INPUT, OK

TINY = [
    "data=pydoc", "sweep.width=[32,64]", "sweep.base_width=32", "sweep.lr=[-6]", "sweep.seed=[0]", "lr.adaptive=false",
    "model.context=16", "train.batch_size=4", "train.steps=4", "train.warmup=1", "train.eval_sequences=4", "probe.steps=[2]",
    "probe.sequences=2", "cluster.workers=1",
]  # fmt: skip


@pytest.fixture
def add(tmp_path):
    """Function that writes one file of the user's folder, which is where launches start."""

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    return write


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Function of overrides to what a launch that trains nothing prints, called in this process in the user's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known = set(sys.modules)

    def start(*overrides: str, wanted: int = OK) -> str:
        code, out, err = call("launch", *TINY, *overrides)
        assert code == wanted, err
        assert wanted != OK or not err
        return out if wanted == OK else err

    yield start
    for name in set(sys.modules) - known:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def train(tmp_path):
    """Function of overrides: a launch in the user's folder, whose runs a worker process trains."""

    def start(*overrides: str) -> None:
        done = Launch(tmp_path, [*TINY, *overrides])
        assert (done.wait(), done.err) == (OK, "")

    return start


OPTIMIZER = """
    import torch
    from spectral_mup.optim.stacked import StackedOptimizer

    class SignMomentum(StackedOptimizer):
        matrices_only = False

        def __init__(self, params, lr=1e-3, weight_decay=0.0, momentum=0.9):
            super().__init__(params, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

        def init_state(self, weight, group):
            return {"momentum": torch.zeros_like(weight)}

        def direction(self, gradient, weight, state, group, step):
            return state["momentum"].mul_(group["momentum"]).add_(gradient).sign()
"""
OPTIMIZER_YAML = """
    hidden: sign
    embedding: sign
    readout: sign
    vector: sign
    weight_decay: {hidden: 0.1, embedding: 0.1, readout: 0.1, vector: 0.0}
    algorithms:
      sign:
        target: sign_momentum.SignMomentum
        update_norm: {m_out: 0.5, m_in: 0.5}
        eps_law: {}
        eps: null
        lr: 1.0
        lr_shape: {}
        args: {momentum: 0.9}
"""


def test_an_optimizer_is_one_file_and_one_yaml(add, launch, train, tmp_path):
    add("sign_momentum.py", OPTIMIZER)
    add("conf/optimizer/mine.yaml", OPTIMIZER_YAML)
    assert "optimizer mine" in launch("optimizer=mine", "action=explain")
    train("optimizer=mine", "rule=[spectral]", "sweep.name=mine")
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
    add("conf/optimizer/other_momentum.yaml", OPTIMIZER_YAML.replace("momentum: 0.9", "momentum: 1.5"))
    message = launch("optimizer=other_momentum", "action=plan", wanted=BAD_INPUT)
    assert "optimizer.algorithms.sign.args" in message and "momentum=1.5" in message
    assert "(in conf/optimizer/other_momentum.yaml)" in message


RULE = """
    source: a paper, Table 1
    multipliers:
      attention: {d_head: -1}
    scaling:
      init_std: {hidden: {m_in: -0.5}}
      lr:
        adamw: {hidden: {m_in: -1}, readout: {m_in: -1}}
    differences:
      - [eps, width, adamw, embedding hidden bias norm, 0, -1, "not given by the source, so × 1"]
"""


def test_a_published_rule_is_one_yaml(add, launch):
    add("conf/rule/mine.yaml", RULE)
    shown = launch("rule=[mine,spectral,standard]", "action=plan")
    assert all(f"  {rule} width 32 depth 2" in shown for rule in ("mine", "spectral", "standard"))
    assert "a paper, Table 1" in launch("rule=[mine]", "action=explain")
    add("conf/rule/other.yaml", RULE.replace("multipliers:", "multiplier:"))
    message = launch("rule=[other]", "action=plan", wanted=BAD_INPUT)
    assert message.startswith("error: rule.other.multiplier: unknown key; did you mean rule.other.multipliers")
    assert "(in conf/rule/other.yaml)" in message and message.count("\n") == 1


FAMILY = """
    from spectral_mup.models.configs import FamilyConfig


    class ParallelConfig(FamilyConfig):
        norm_eps: float

        def build(self, vocab_size, width, depth):
            from parallel_model import Parallel

            return Parallel(self, vocab_size, width, depth)
"""
FAMILY_MODEL = """
    from torch import nn

    from spectral_mup.models.layers import CausalSelfAttention, LanguageModel, SwigluMLP
    from spectral_mup.theory.rules import Multipliers


    class Block(nn.Module):
        def __init__(self, config, width):
            super().__init__()
            heads, self.branch = config.head_count(width), 1.0
            self.norm = nn.RMSNorm(width, eps=config.norm_eps)
            self.attention = CausalSelfAttention(width, heads, heads, config.head_dim(width), False, config.dropout)
            self.mlp = SwigluMLP(width, config.mlp_width(width), False, config.dropout)

        def forward(self, x):
            h = self.norm(x)
            return x + self.branch * (self.attention(h) + self.mlp(h))


    class Parallel(LanguageModel):
        def __init__(self, config, vocab_size, width, depth):
            super().__init__()
            self.context, self.multipliers = config.context, Multipliers(attention=config.head_dim(width) ** -0.5)
            self.token = nn.Embedding(vocab_size, width)
            self.blocks = nn.ModuleList(Block(config, width) for _ in range(depth))
            self.norm = nn.RMSNorm(width, eps=config.norm_eps)
            self.readout = nn.Linear(width, vocab_size, bias=False)

        def features(self, x):
            h = self.multipliers.embedding * self.token(x)
            for block in self.blocks:
                h = block(h)
            return self.norm(h)
"""
FAMILY_YAML = """
    family: parallel.ParallelConfig
    context: 16
    heads: null
    head_size: 16
    mlp_ratio: 2.0
    mlp_hidden: null
    mlp_multiple: null
    norm_eps: 1.0e-5
    tied: false
    dropout: 0.0
    init_std: {embedding: null, hidden: null, readout: null}
"""


def test_a_model_family_is_a_config_class_its_model_and_one_yaml(add, launch, train, tmp_path):
    add("parallel.py", FAMILY)
    add("parallel_model.py", FAMILY_MODEL)
    add("conf/model/mine.yaml", FAMILY_YAML)
    launch("model=mine", "action=plan")
    assert "mlp.gate" in launch("model=mine", "action=explain")
    train("model=mine", "rule=[spectral]", "sweep.name=mine")
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 2
    config = json.loads(next(tmp_path.glob("runs/*/config.json")).read_text())
    assert config["model"]["norm_eps"] == 1e-5 and "bias" not in config["model"] and "rope_base" not in config["model"]
    message = launch("model=mine", "+model.bias=true", "action=plan", wanted=BAD_INPUT)  # another family's key
    assert message.startswith("error: model.bias: unknown key") and "norm_eps" in message
    assert "norm_eps" not in launch("+model.bias=true", "model.biass=true", wanted=BAD_INPUT)


def test_a_cluster_site_is_one_yaml(add, launch):
    site = "defaults: [slurm]\npartition: gpu-long\ntime: 60\n"
    add("conf/cluster/site.yaml", site)
    wrong = launch("cluster=site", "cluster.signal_seconds=3600", "action=plan", wanted=BAD_INPUT)
    assert wrong.startswith("error: cluster.signal_seconds=3600")  # against the 60 minutes of this file
    add("conf/cluster/named.yaml", f"name: named\n{site}")
    message = launch("cluster=named", "action=plan", wanted=BAD_INPUT)
    assert message.startswith("error: cluster.name: unknown key") and "(in conf/cluster/named.yaml)" in message


def test_a_folder_of_the_group_counts_after_ones_own(add, launch, tmp_path, monkeypatch):
    """$SPECTRAL_MUP_PATH: presets and modules of other project folders."""
    add("group/sign_momentum.py", OPTIMIZER)
    add("group/conf/optimizer/mine.yaml", OPTIMIZER_YAML)
    add("group/conf/rule/mine.yaml", RULE)
    add("group/sweeps/narrow.yaml", "defaults:\n  - default\n  - override /optimizer: mine\nlr:\n  budget: 13\n")
    monkeypatch.setenv("SPECTRAL_MUP_PATH", str(tmp_path / "nowhere") + ":" + str(Path(tmp_path / "group")))
    assert launch("sweep=narrow", "action=plan").startswith("narrow: ")
    add("conf/rule/mine.yaml", RULE.replace("Table 1", "Table 2"))
    assert "a paper, Table 2" in launch("sweep=narrow", "optimizer=adamw", "rule=[mine]", "action=explain")


QUANTITY = '''
    def peak(tensor):
        """Largest entry of the update over its RMS: 1 for a sign."""
        if tensor.update is None:
            return None
        return float(tensor.update.abs().max() / tensor.update.square().mean().sqrt().clamp_min(1e-30))
'''
FIGURE = '''
    import pandas as pd
    from matplotlib.figure import Figure

    def final_losses(sweep):
        """Validation loss of every run."""
        drawing = Figure(figsize=(3, 2))
        drawing.add_subplot().plot(sweep.points["width"], sweep.points["loss"], "o")
        return drawing, pd.DataFrame(sweep.points[["rule", "width", "loss"]])
'''


@pytest.mark.slow
def test_a_quantity_and_a_figure_are_a_function_each(add, launch, train, tmp_path):
    """The quantity is a column of norms.jsonl and is drawn without further code; both are named by their import paths."""
    add("my_quantities.py", QUANTITY)
    add("my_figures.py", FIGURE)
    train("probe.quantities=[update_norm,my_quantities.peak]")
    rows = [json.loads(line) for path in tmp_path.glob("runs/*/norms.jsonl") for line in path.read_text().splitlines()]
    peaks = [row["peak"] for row in rows if "peak" in row]
    assert peaks and min(peaks) >= 1 and not any("grad_norm" in row for row in rows)
    assert not any("peak" in row for row in rows if row["step"] == 0)

    own = ["probe.quantities=[update_norm,my_quantities.peak]", "figures.only=[quantities,my_figures.final_losses]"]
    code, _, err = call("analyze", *TINY, *own)
    assert code == OK, err
    written = {path.name for path in (tmp_path / "results/default").glob("*.png")}
    assert written == {"quantities.png", "final_losses.png"}
    assert "peak" in (tmp_path / "results/default/quantities.csv").read_text()

    message = launch("probe.quantities=[update_nrm]", wanted=BAD_INPUT)
    assert message.startswith("error: probe.quantities=update_nrm: did you mean update_norm?") and message.count("\n") == 1


ACTION = '''
    def count(context):
        """Print how many runs the sweep has."""
        print(f"{context.config.sweep.name} has {len(context.plan.runs)} runs")
        return 0
'''


def test_an_action_is_a_function_of_the_context(add, launch):
    add("my_actions.py", ACTION)
    assert launch("action=my_actions.count") == "default has 3 runs\n"
    message = launch("action=my_actions.cuont", wanted=BAD_INPUT)
    assert message.startswith("error: action=my_actions.cuont: cannot be imported") and message.count("\n") == 1
