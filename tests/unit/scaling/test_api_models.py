"""Laws of the public functions on transformers' GPT-2 and Llama: growths, multipliers in the forward pass, copies, files."""

import copy
import io
import runpy

import pytest
import torch
import transformers
from support import ROOT
from support.networks import decayed

from spectral_mup import check_features, init_, make_optimizers, multipliers, param_groups, scale, set_multipliers_

M = 2
TOKENS = {"bos_token_id": 0, "eos_token_id": 1}


def gpt2(width: int, depth: int = 2, heads: int = 4, tied: bool = True):
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=width, n_layer=depth, n_head=heads, n_positions=16, tie_word_embeddings=tied,
        attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, **TOKENS,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(width: int, depth: int = 2, heads: int = 4, tied: bool = False, kv_heads: int = 2):
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=16, tie_word_embeddings=tied, **TOKENS,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


BUILDS = {"gpt2": gpt2, "llama": llama}
X = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))


def loss_of(model) -> torch.Tensor:
    return model(input_ids=X, labels=X).loss


def descend(model, optimizers, steps: int = 2) -> float:
    for _ in range(steps):
        for o in optimizers:
            o.zero_grad()
        loss_of(model).backward()
        for o in optimizers:
            o.step()
    return float(loss_of(model).detach())


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("tied", [True, False])
def test_kinds_and_lrs(name, tied):
    build = BUILDS[name]
    scalings = scale(build(64, tied=tied), build(32, tied=tied), rule="spectral")
    for tensor, growth in scalings.growths.items():
        expected = "vector" if len(scalings.shapes[tensor]) == 1 else "hidden"
        if any(part in tensor for part in ("wte", "wpe", "embed_tokens")):
            expected = "embedding"
        elif "lm_head" in tensor:
            expected = "readout"
        assert growth.kind == expected, tensor
        assert scalings[tensor].lr == pytest.approx(1 / M if expected == "hidden" else 1), tensor
        assert growth.in_block == (".h." in tensor or ".layers." in tensor)
    assert ("lm_head.weight" in scalings) != tied
    assert scalings.multipliers.logits == 1 / M
    if tied:
        assert dict(scale(build(64, tied=True), build(32, tied=True))) == dict(scalings)
        with pytest.raises(ValueError, match='tied to the output layer.*rule="auto" or "spectral" and set_multipliers_'):
            scale(build(64, tied=True), build(32, tied=True), rule="spectral_readout")


def test_a_weight_stored_in_by_out_grows_as_the_map_that_it_is():
    """Conv1D: c_fc (D, 4D) has fan_in D. Read as it is stored, Muon's √(fan_out/fan_in) would be upside down."""
    scalings = scale(gpt2(64), gpt2(32), rule="spectral", optimizer="muon")
    assert scalings.growths["transformer.h.0.mlp.c_fc.weight"].shape == (256, 64)
    lrs = {n: g["lr"] for g in param_groups(gpt2(64), scalings, lr=1.0, algorithm="muon") for n in g["names"]}
    assert lrs["transformer.h.0.mlp.c_fc.weight"] == pytest.approx(2)
    assert lrs["transformer.h.0.mlp.c_proj.weight"] == pytest.approx(0.5)


def test_grouped_queries_keep_the_growth_of_their_own_heads():
    more = scale(llama(64, heads=8, kv_heads=4), llama(32, heads=4, kv_heads=2)).growths[
        "model.layers.0.self_attn.k_proj.weight"
    ]
    assert (more.m_out, more.m_in) == (2, 2)
    fixed = scale(llama(64, heads=8), llama(32, heads=4)).growths["model.layers.0.self_attn.k_proj.weight"]
    assert (fixed.kind, fixed.m_out, fixed.m_in) == ("hidden", 1, 2)


@pytest.mark.parametrize("name", BUILDS)
def test_init_is_the_base_model_s_own_times_its_multiplier(name):
    """transformers' fixed std 0.02, over √(2·depth) for GPT-2's output projections, times the growth of fan_in^-1/2."""
    torch.manual_seed(0)
    build = BUILDS[name]
    model = build(128, depth=4)
    scalings = scale(model, build(64), rule="spectral")
    init_(model, scalings, seed=0)
    for tensor, p in model.named_parameters():
        if p.ndim > 1:
            base = 0.02 / 2 if "c_proj" in tensor else 0.02
            expected = base * (M**-0.5 if scalings.growths[tensor].kind == "hidden" else 1)
            assert float(p.detach().std()) == pytest.approx(expected, rel=0.08), tensor


@pytest.mark.parametrize("name", BUILDS)
def test_at_base_size_nothing_changes_and_training_is_plain_torch(name):
    torch.manual_seed(0)
    model = BUILDS[name](32)
    plain = copy.deepcopy(model)
    scalings = scale(model, BUILDS[name](32), rule="spectral")
    assert {(s.init_std, s.lr, s.weight_decay, s.eps) for s in scalings.values()} == {(1.0, 1.0, 1.0, 1.0)}
    set_multipliers_(model, scalings)
    ours = descend(model, [torch.optim.AdamW(param_groups(model, scalings, lr=0.01, weight_decay=0.1))])
    assert ours == descend(plain, [torch.optim.AdamW(decayed(plain, 0.1), lr=0.01)])
    assert all(a.equal(b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("name", BUILDS)
def test_multipliers_act_in_training_and_generation_and_twice_is_once(name):
    torch.manual_seed(0)
    build = BUILDS[name]
    model = build(64, depth=4).eval()
    scalings = scale(model, build(32), rule="spectral")
    plain = copy.deepcopy(model)
    said = set_multipliers_(model, scalings)
    assert [note.split()[0] for note in said] == ["attention:", "logits", "branches"] and "8 modules" in said[2]
    assert set_multipliers_(model, scalings) == said
    assert multipliers(scalings).attention == pytest.approx(8**0.5 / 16)

    for module in plain.modules():  # by hand, on the weights: scaling, a·W in the last maps of branches, c·h at the end
        if hasattr(module, "scaling") and hasattr(module, "head_dim"):
            module.scaling = 8**0.5 / 16
    if name == "gpt2":
        last = [layer for block in plain.transformer.h for layer in (block.attn.c_proj, block.mlp.c_proj)]
    else:
        last = [layer for block in plain.model.layers for layer in (block.self_attn.o_proj, block.mlp.down_proj)]
    with torch.no_grad():
        for layer in last:
            for p in layer.parameters():
                p.mul_(0.5)
        logits = plain(X).logits / M
        torch.testing.assert_close(model(X).logits, logits)
        assert not torch.allclose(build(64, depth=4)(X).logits, logits)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), X[:, 1:].flatten())
        torch.testing.assert_close(loss_of(model), loss)
        said = model.generate(X[:, :4], max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
        torch.testing.assert_close(said.logits[0], plain(X[:, :4]).logits[:, -1] / M)


def test_hooks_survive_copies_files_and_compilation():
    torch.manual_seed(0)
    model = llama(64, depth=4, tied=True).eval()
    scalings = scale(model, llama(32, tied=True), rule="spectral")
    before = model(X).logits
    set_multipliers_(model, scalings)
    expected = model(X).logits
    assert not torch.allclose(expected, before)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False), torch.compile(model, backend="eager")):
        torch.testing.assert_close(other(X).logits, expected)
        set_multipliers_(other, scalings)
        torch.testing.assert_close(other(X).logits, expected)
    fresh = llama(64, depth=4, tied=True).eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(X).logits, before)  # a state_dict has no hooks, as the docstring says
    set_multipliers_(fresh, scalings)
    torch.testing.assert_close(fresh(X).logits, expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_saved_and_loaded_goes_on_as_if_unbroken(optimizer):
    torch.manual_seed(0)
    model = llama(64, depth=4)
    scalings = scale(model, llama(32), optimizer=optimizer)
    set_multipliers_(model, scalings)
    init_(model, scalings, seed=0)
    optimizers = make_optimizers(model, scalings, lr=0.01)
    descend(model, optimizers)
    file = io.BytesIO()
    torch.save([model.state_dict(), scalings, *(o.state_dict() for o in optimizers)], file)
    unbroken = descend(model, optimizers)
    file.seek(0)
    weights, scalings, *states = torch.load(file, weights_only=False)
    resumed = llama(64, depth=4)
    resumed.load_state_dict(weights)
    set_multipliers_(resumed, scalings)
    optimizers = make_optimizers(resumed, scalings, lr=0.5)
    for o, state in zip(optimizers, states, strict=True):
        o.load_state_dict(state)
    assert descend(resumed, optimizers) == unbroken


def test_the_feature_check_sees_every_map_of_a_tied_gpt2():
    def batch(seed: int, step: int) -> dict[str, torch.Tensor]:
        tokens = torch.randint(0, 64, (4, 16), generator=torch.Generator().manual_seed(1000 * seed + step))
        return {"input_ids": tokens, "labels": tokens}

    verdict = check_features(gpt2, [32, 64], lr=0.01, batch=batch, rule="spectral", steps=3, seeds=[0], control=None)
    maps = {f"transformer.h.{i}.{m}" for i in (0, 1) for m in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    tables = {"transformer.wte", "transformer.wpe"}
    names = {row["name"]: row["kind"] for row in verdict.check.table.to_dict("records")}
    assert set(names) == maps | tables | {"transformer.h.0", "transformer.h.1", "logits"}
    assert {names[name] for name in maps} == {"hidden"} and {names[name] for name in tables} == {"embedding"}
    assert verdict.rule == check_features(gpt2, [32, 64], lr=0.01, batch=batch, steps=1, seeds=[0], control=None).rule
    with pytest.raises(ValueError, match="tied to the output layer"):
        check_features(gpt2, [32, 64], lr=0.01, batch=batch, rule="spectral_readout")


def test_the_example_runs(capsys):
    """At two small widths, where its check need not pass; the printed table is that of the larger."""
    main = runpy.run_path(str(ROOT / "examples" / "huggingface.py"))["main"]
    assert main(["--widths", "32", "64", "--steps", "2"]) in (0, 5)
    said = capsys.readouterr().out
    (up,) = [line.split() for line in said.splitlines() if line.startswith("model.layers.*.mlp.up_proj.weight")]
    assert up[1:5] == ["256×64", "hidden", "2", "2"] and "muon" in up
    assert "width 32: loss" in said and "control standard" in said
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--widths" in capsys.readouterr().out
