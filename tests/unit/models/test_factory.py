"""A model and batches of one's own in a sweep: how they are called, scaled, identified, and what is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import call
from support.own_model import LANGUAGE_MODEL
from support.runs import run_point

from spectral_mup import data
from spectral_mup.config.compose import load_config
from spectral_mup.config.parse import parse
from spectral_mup.errors import ConfigError
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.run_scaling import check_model, scale_run

CODE = (
    LANGUAGE_MODEL
    + """

SCALE = 1.0

class Net(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.first, self.second, self.readout = nn.Linear(8, width), nn.Linear(width, width), nn.Linear(width, out)
        nn.init.normal_(self.second.weight, std=0.02)

    def forward(self, x, y):
        return nn.functional.mse_loss(self.readout(torch.tanh(self.second(torch.tanh(self.first(x))))), y)

def build(width, out=1):
    return Net(width, out)

def batches(seed, step, batch_size):
    g = torch.Generator().manual_seed(10**6 * (7 if seed is None else seed + 11) + step)
    x = torch.randn(batch_size, 8, generator=g)
    return {"x": x, "y": SCALE * x[:, :1] * x[:, 1:2]}

def language_model(width, vocab_size, **rest):
    assert set(rest) == {"depth", "context"}
    return LM(width, vocab_size)

def nothing(width):
    return None

def needs_heads(width, heads):
    return Net(width, heads)

def no_width(size):
    return Net(size, 1)

def number(seed, step):
    return 3.0
"""
)
BASIC = [
    "model=factory", "model.target=mine.build", "data=batches", "data.target=mine.batches", "rule=[spectral_readout]",
    "sweep.width=[16,32,64]", "sweep.base_width=16", "sweep.depth=[1]", "sweep.base_depth=1", "sweep.lr=[-6]", "sweep.seed=[0]",
    "lr.adaptive=false", "train.steps=12", "train.warmup=2", "train.eval_sequences=16", "probe.steps=[12]", "sweep.name=mine",
    "train.precision=float32",
]  # fmt: skip


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield tmp_path / "mine.py"
    sys.modules.pop("mine", None)


def a_run(*overrides: str, width: int = 64):
    config = load_config([*BASIC, *overrides])
    rule = next(iter(config.rule))
    return config, open_sweep(config).run(Curve(rule, width, 1), -6, 0)


def test_a_model_that_returns_its_loss_trains_on_batches_of_ones_own(tmp_path):
    config, run = a_run()
    folder, result = run_point(run, tmp_path / "runs", data.load_data(*config.data.place))
    assert result is not None and result["status"] == "done" and result["tokens"] is None
    assert result["corpus"]["name"] == "mine.batches" and result["corpus"]["sha256"]
    _, again = run_point(run, tmp_path / "again", data.load_data(*config.data.place))
    assert again == result


def test_weights_start_as_the_function_draws_them_and_grow_by_the_rule():
    """nn.Linear draws uniformly in ±fan_in^-1/2, of std (3·fan_in)^-1/2; `second` has a std of its own, 0.02."""
    _, run = a_run()
    model = run.model.build(None, 64, 1)
    scaling = scale_run(run, model, None)
    base = {name.partition(".")[0]: std for name, std in scaling.base_std.items() if name.endswith("weight")}
    assert base == pytest.approx({"first": 24**-0.5, "second": 0.02, "readout": 48**-0.5}, rel=0.25)
    assert scaling["second.weight"].init_std == pytest.approx(0.5) and scaling["first.weight"].init_std == pytest.approx(1)


def test_an_init_std_of_the_sweep_overrides_that_of_the_function():
    _, run = a_run("model.init_std.hidden=0.7")
    scaling = scale_run(run, run.model.build(None, 64, 1), None)
    assert scaling.base_std["second.weight"] == 0.7 and scaling.base_std["first.weight"] != 0.7


def test_a_language_model_is_given_vocabulary_depth_and_context(tmp_path):
    of_text = [x for x in BASIC if not x.startswith("data")] + ["model.target=mine.language_model", "data=pydoc"]
    config = load_config([*of_text, "model.context=16", "train.batch_size=4", "rule=[spectral]"])
    run = open_sweep(config).run(Curve("spectral", 64, 1), -6, 0)
    check_model([run], 256)
    _, result = run_point(run, tmp_path / "runs", data.load_data(*config.data.place))
    assert result is not None and result["status"] == "done" and result["tokens"] == 12 * 4 * 16


def test_other_code_is_another_run(module):
    _, before = a_run()
    (module.parent / "model_alone.py").write_text(CODE)
    _, moved = a_run("model.target=model_alone.build")
    module.write_text(CODE.replace("SCALE = 1.0", "SCALE = 2.0"))
    sys.modules.pop("mine")
    _, after = a_run()
    assert len({before.run_id, moved.run_id, after.run_id}) == 3
    with pytest.raises(ConfigError, match="changed since the launch"):
        parse(type(before.model), before.model.model_dump(), "model")


@pytest.mark.parametrize(
    "override, said",
    [
        ("model.target=mine.nothing", "returned NoneType"),
        ("model.target=mine.needs_heads", "'heads'"),
        ("model.target=mine.no_width", "'size'"),
        ("model.args={hedas: 2}", "'hedas'"),
        ("model.target=mine.missing", "cannot be imported"),
        ("model.target=nowhere.build", "cannot be imported"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused_by_name(override, said):
    _, run = a_run(override)
    with pytest.raises(ConfigError, match=said):
        run.model.build(256, 32, 1)


def test_a_batch_that_is_no_table_is_refused(tmp_path):
    config, run = a_run("data.target=mine.number")
    with pytest.raises(ConfigError, match="dict or a tuple, not float"):
        run_point(run, tmp_path / "runs", data.load_data(*config.data.place))


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["data.target=mine.absent"], "cannot be imported"),
        (["sweep.depth=[1,2,4]"], "takes no depth"),
    ],
)
def test_the_plan_refuses_what_cannot_be_trained(overrides, said):
    code, out, err = call("launch", *BASIC, *overrides, "action=plan")
    assert code == 2 and said in err, out + err


def test_a_family_of_the_package_needs_the_vocabulary_of_ones_own_batches():
    own = [x for x in BASIC if not x.startswith("model")] + ["model=nanogpt", "model.head_size=16", "rule=[spectral]"]
    with pytest.raises(ConfigError, match=r"data\.vocab_size: model=nanogpt needs it"):
        load_config(own)
    assert load_config([*own, "data.vocab_size=256"]).data.vocab_size == 256
