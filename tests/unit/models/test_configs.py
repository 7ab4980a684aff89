"""The config class of a family: sizes at a width, refused combinations, and a model whose multipliers can be set."""

import sys

import pytest
import torch

from spectral_mup.config.compose import ConfigError, load_config
from spectral_mup.config.schema import to_plain
from spectral_mup.models import FAMILIES
from spectral_mup.models.configs import FamilyConfig, Llama2Config, ModelConfig
from spectral_mup.models.layers import CausalSelfAttention, LanguageModel
from spectral_mup.theory.rules import Multipliers
from spectral_mup.util.registry import lookup

OURS = ("nanogpt", "llama2")


def config_of(family: str) -> ModelConfig:
    needed = ["model.target=mine.build"] if family == "factory" else []
    return load_config([f"model={family}", *needed]).model


def config(family: str, **changes) -> FamilyConfig:
    of_family = config_of(family)
    assert isinstance(of_family, FamilyConfig)
    return of_family.model_copy(update=changes)


@pytest.fixture(autouse=True)
def _module_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("def build(width): ...")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_only_its_own_keys(family):
    keys = set(to_plain(config_of(family)))
    assert ("rope_base" in keys) == (family == "llama2") and ("bias" in keys) == (family == "nanogpt")
    assert ("heads" in keys) == (family != "factory") and ("target" in keys) == (family == "factory")
    assert isinstance(config_of(family), lookup(FAMILIES, family, "model.family"))


@pytest.mark.parametrize("family, label", [*zip(OURS, OURS, strict=True), ("huggingface", "llama"), ("factory", "mine.build")])
def test_tables_and_figures_call_a_model_by_what_it_is(family, label):
    assert config_of(family).label == label


def test_sizes_at_a_width():
    fixed = config("llama2", heads=None, head_size=16, kv_ratio=0.5)
    assert isinstance(fixed, Llama2Config)
    assert [fixed.head_count(w) for w in (1, 64, 128)] == [1, 4, 8]
    assert [fixed.kv_head_count(w) for w in (1, 64, 128)] == [1, 2, 4]
    assert [fixed.head_dim(w) for w in (1, 64)] == [16.0, 16.0]
    growing = config("nanogpt", heads=2, head_size=None)
    assert growing.head_dim(1) == 0.5 and growing.head_count(1) == 2
    assert config("llama2", mlp_ratio=8 / 3, mlp_multiple=16).mlp_width(64) == 176
    assert config("nanogpt", mlp_ratio=None, mlp_hidden=100).mlp_width(64) == 100


def test_init_stds_of_a_tied_table_are_the_readouts():
    tied = config("nanogpt", tied=True)
    assert tied.init_stds(64) == {"embedding": 1 / 8, "hidden": None, "readout": None, "position": 1 / 8}
    std = tied.init_std.model_copy(update={"readout": 0.02})
    assert config("nanogpt", tied=True, init_std=std).init_stds(64)["embedding"] == 0.02
    assert config("llama2").init_stds(64) == {"embedding": 1.0, "hidden": None, "readout": None}
    assert config("nanogpt").init_stds(64)["embedding"] == 0.5


def test_positions_start_as_tokens_do_unless_they_are_given_a_std():
    std = config("nanogpt").init_std
    for own, expected in ((None, 0.1), (0.0, 0.0), (0.3, 0.3)):
        init_std = std.model_copy(update={"embedding": 0.1, "position": own})
        assert config("nanogpt", init_std=init_std).init_stds(64)["position"] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_cost_is_about_the_parameters(family):
    """12 · depth · width² + 512 · width + 20000 · depth, whatever the family."""
    assert config_of(family).flops_per_token(64, 3) == 12 * 3 * 64**2 + 512 * 64 + 60_000


@pytest.mark.parametrize("family", OURS)
def test_multipliers_can_be_set_again_and_take_no_second_model(family):
    torch.manual_seed(0)
    model = config(family, context=8).build(50, 64, 2).eval()
    assert isinstance(model, LanguageModel)
    x = torch.randint(50, (2, 8))
    standard = Multipliers(attention=config(family).head_dim(64) ** -0.5)
    plain = model(x)
    model.set_multipliers(standard)
    assert model(x).equal(plain)  # that is how it is built
    assert all(m.head_dim == config(family).head_dim(64) for m in model.modules() if isinstance(m, CausalSelfAttention))
    other = Multipliers(attention=0.1, branch=0.5, logits=3.0, embedding=2.0)
    for part in ("attention", "branch", "logits", "embedding"):
        model.set_multipliers(Multipliers(**{"attention": standard.attention} | {part: getattr(other, part)}))
        assert not model(x).allclose(plain), part
    for _ in range(2):
        model.set_multipliers(other)
    once = model(x)
    model.set_multipliers(standard)
    assert model(x).equal(plain) and not once.allclose(plain)


def test_combinations_are_refused_by_the_family():
    with pytest.raises(ConfigError, match="^sweep.width: 100 "):
        config("nanogpt").check_widths([64, 100], "sweep.width")
    with pytest.raises(ConfigError, match="^derive.width: .*even head size"):
        config("llama2", head_size=1, kv_ratio=None).check_widths([64], "derive.width")
    config("nanogpt", head_size=1).check_widths([64], "derive.width")  # which has no rotation


def test_its_config_imports_no_torch():
    import subprocess

    code = "import spectral_mup.models.configs, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done
