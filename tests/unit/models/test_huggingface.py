"""Decoders of transformers as a family: each tensor scaled as arXiv 2203.03466 has it, what grows, what is refused."""

import pytest
import torch
from support.cli import call
from support.runs import first_point, run_point

from spectral_mup import data
from spectral_mup.config.compose import load_config
from spectral_mup.data import load
from spectral_mup.errors import ConfigError
from spectral_mup.models.huggingface import build, check_sizes, their_config
from spectral_mup.runs.run_config import Curve
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.forward_multipliers import set_multipliers_
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import check_model, scale_on_meta, scale_run

pytest.importorskip("transformers", reason="pip install transformers")

TYPES = ["llama", "gpt2", "qwen3", "gemma2", "olmo2", "phi3", "gpt_neox", "mixtral"]
TABLES, OUTPUT = ("embed_tokens", "wte", "wpe", "embed_in"), ("lm_head", "embed_out")
M = 4  # width 128 against 32
EXPERTS = {
    "qwen3_moe": "num_local_experts",
    "olmoe": "num_experts",
    "llama4_text": "num_local_experts",
    "gpt_oss": "num_local_experts",
}
SMALL = {kind: [f"+model.config.{key}=4"] for kind, key in (EXPERTS | {"mixtral": "num_local_experts"}).items()}


def config_of(kind: str, *more: str):
    return load_config(
        ["model=huggingface", f"model.type={kind}", "data=pydoc", "sweep.width=[32,64,128]", "sweep.base_width=32",
         "sweep.lr=[-6]", "sweep.seed=[0]", "train.steps=20", "train.warmup=2", "model.context=16", "train.batch_size=4",
         "train.eval_sequences=4", "probe.sequences=2", "probe.steps=[20]", "train.compile=false", "train.precision=float32",
         "lr.adaptive=false", f"sweep.name={kind}", *more]
    )  # fmt: skip


def expected(name: str, dims: int) -> tuple[float, float, float]:
    """(init std, lr, multiplier) of Adam in Table 8 of arXiv 2203.03466, with the readout's 1/m on its input.

    A router reads features that grow and writes logits that do not: an output of Table 3, whose 1/m is in its init and lr.
    """
    if dims == 1 or "norm" in name or name.endswith("bias"):
        return 1, 1, 1
    if any(router in name for router in ("mlp.gate.", "router.")):
        return 1 / M, 1 / M, 1
    if any(table in name for table in TABLES):
        return 1, 1, 1
    if any(output in name for output in OUTPUT):
        return 1, 1, 1 / M
    return M**-0.5, 1 / M, 1


@pytest.mark.parametrize("kind", [*TYPES, *EXPERTS])
def test_every_tensor_is_scaled_as_the_published_table_has_it(kind):
    run = open_sweep(config_of(kind, *SMALL.get(kind, []))).run(Curve("spectral", 128, 2), -6, 0)
    model = run.model.build(256, 128, 2)
    scaling = scale_run(run, model, 256)
    for name, p in model.named_parameters():
        s, forward = scaling[name], scaling.multipliers.of(scaling.growths[name])
        assert (s.init_std, s.lr, forward) == pytest.approx(expected(name, p.ndim)), name
    assert not [said for said in set_multipliers_(model, scaling) if said.startswith("to do")]


def test_a_stack_of_experts_counts_as_matrices_and_starts_as_its_own_fan_in_says():
    """fan_in^-1/2 of the base times m^-1/2: 128^-1/2 for gate and up, of 4 · 128 for down, in either layout."""
    for kind in ("mixtral", "gpt_oss"):
        run = open_sweep(config_of(kind, *SMALL[kind])).run(Curve("spectral", 128, 2), -6, 0)
        model = run.model.build(256, 128, 2)
        scaling = scale_run(run, model, 256)
        init_(model, scaling, seed=0)
        for name, fan_in, fan_out in (("gate_up_proj", 128, 8 * 128), ("down_proj", 4 * 128, 128)):
            name = f"model.layers.1.mlp.experts.{name}"
            assert scaling.growths[name].shape == (fan_out, fan_in)
            experts = model.get_parameter(name).detach()
            assert len(experts) == 4 and not experts[0].equal(experts[1])
            for expert in experts:
                assert float(expert.std()) == pytest.approx(fan_in**-0.5, rel=0.02), name


def test_gemma_s_factor_on_the_embedding_stays_that_of_the_base():
    """√hidden_size is the model's own: 2 = √(128/32) of it is taken back."""
    run = open_sweep(config_of("gemma2")).run(Curve("spectral", 128, 2), -6, 0)
    model = run.model.build(256, 128, 2)
    said = set_multipliers_(model, scale_run(run, model, 256))
    assert "model.embed_tokens × 0.5, as its own factor grows" in said


@pytest.mark.parametrize("kind", ["jamba", "jetmoe"])
def test_bare_parameters_that_their_module_does_not_tell_are_known(kind):
    run = open_sweep(config_of(kind)).run(Curve("spectral", 128, 2), -6, 0)
    scaling = scale_on_meta(run, 256)
    found = {name.rpartition(".")[2] if "A_log" in name else name.rpartition(".")[0]: s.lr for name, s in scaling.items()}
    if kind == "jamba":
        model = run.model.build(256, 128, 2)
        states = model.get_parameter("model.layers.0.mamba.A_log")
        built = states.detach().clone()
        init_(model, scaling, seed=0)
        assert found["A_log"] == 1 and states.equal(built) and built[0, 1] == torch.tensor(2.0).log()
    else:
        assert found["model.layers.0.mlp.input_linear"] == found["model.layers.0.mlp.output_linear"] == 1 / M


@pytest.mark.parametrize("kind", TYPES)
def test_three_widths_train_and_the_wider_starts_and_learns_alike(kind, tmp_path):
    config = config_of(kind, *SMALL.get(kind, []))
    corpus = load("pydoc", None, None)
    losses = []
    for width in (32, 64, 128):
        folder, result = run_point(first_point(config, width=width), tmp_path, corpus)
        assert result is not None and result["status"] == "done"
        losses.append(result["val_loss"])
    assert max(losses) < 5.0  # of 5.55 at the start
    assert losses[2] < losses[0] + 0.05


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_what_the_sweep_sets_is_in_their_config(kind):
    model = config_of(kind, "model.mlp_ratio=3", "model.kv_ratio=0.5" if kind != "gpt2" else "model.kv_ratio=null").model
    theirs = their_config(model, 99, 64, 3)
    assert (theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads, theirs.vocab_size) == (64, 3, 4, 99)
    assert (theirs.n_inner if kind == "gpt2" else theirs.intermediate_size) == 192
    assert theirs.pad_token_id is None and not theirs.use_cache
    assert kind == "gpt2" or theirs.num_key_value_heads == 2


def test_dropout_is_that_of_the_sweep():
    theirs = their_config(config_of("gpt2", "model.dropout=0.25").model, 99, 64, 2)
    assert (theirs.resid_pdrop, theirs.embd_pdrop, theirs.attn_pdrop) == (0.25, 0.25, 0.25)
    assert their_config(config_of("gpt2").model, 99, 64, 2).resid_pdrop == 0


def test_a_size_that_no_table_knows_must_be_said_to_grow_or_to_stay():
    latent = ["model.head_size=16", "model.kv_ratio=null"]
    with pytest.raises(ConfigError, match=r"q_lora_rank=1536.*model.grows={q_lora_rank: 48}.*model.config={q_lora_rank: 1536}"):
        check_sizes(config_of("deepseek_v3", *latent).model, 256, 32)
    grows = "model.grows={q_lora_rank: 0.5, kv_lora_rank: 0.25}"
    model = config_of(
        "deepseek_v3", *latent, grows, "model.config={qk_rope_head_dim: 8, qk_nope_head_dim: 8, v_head_dim: 16}"
    ).model
    theirs = [their_config(model, 256, width, 1).q_lora_rank for width in (32, 64)]
    assert theirs == [16, 32]


@pytest.mark.parametrize(
    "override, said",
    [
        ("model.type=lama", "did you mean llama"),
        ("model.type=bert_generation_encoder", "no decoder"),
        ("model.config={rope_tetha: 1}", "model.config.rope_tetha"),
        ("model.grows={intermediat_size: 2}", "did you mean intermediate_size"),
    ],
)
def test_what_transformers_does_not_know_is_refused_in_one_line(override, said):
    with pytest.raises(ConfigError, match=said):
        build(config_of("llama", override).model, 256, 32, 2)


def test_a_model_that_cannot_be_scaled_is_refused_at_the_plan(monkeypatch, tmp_path):
    """Bloom's attention has a factor that hooks cannot reach where heads grow: the plan says so, and trains nothing."""
    monkeypatch.chdir(tmp_path)
    code, _, err = call(
        "launch", "model=huggingface", "model.type=bloom", "model.heads=2", "model.head_size=null", "sweep.width=[32,64,128]",
        "sweep.base_width=32", "data=pydoc", "sweep.name=bloom", "rule=[spectral]", "action=plan",
    )  # fmt: skip
    assert code == 2 and "set_multipliers" in err and not (tmp_path / "runs").exists()


def test_runs_of_the_same_config_are_the_same_to_the_bit(tmp_path):
    config, corpus = config_of("qwen3"), data.load("pydoc", None, None)
    results = [run_point(first_point(config), tmp_path / name, corpus)[1] for name in ("a", "b")]
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["gpt_neox", "opt", "falcon", "olmo2", "gemma2", "mixtral"])
def test_depth_is_planned_for_every_decoder_that_adds_branches(kind):
    """Adam's lr in blocks is 1/m at every depth, and the branches' 1/m_depth can be set."""
    sweep = open_sweep(config_of(kind, "sweep.depth=[2,4]"))
    run = sweep.run(Curve("spectral", 128, 4), -6, 0)
    with torch.device("meta"):
        model = run.model.build(256, 128, 4)
    scaling = scale_run(run, model, 256)
    said = [said for said in set_multipliers_(model, scaling) if "branch" in said]
    assert len(said) == 1 and said[0].startswith("branches × 0.5 at 8 modules of ") and "their names" not in said[0]
    check_model([run], 256)


def test_the_check_is_cheap_and_takes_no_memory():
    sweep = open_sweep(config_of("llama"))
    check_model([sweep.run(Curve("spectral", 65536, 2), -6, 0)], 256)  # 200 GB of weights
