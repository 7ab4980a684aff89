"""Our families are the published ones: same weights, same logits, same gradients as transformers' models; published sizes."""

import warnings

import pytest
import torch
from support import networks
from torch import nn

from spectral_mup.models.llama2 import NORM_EPS, Llama2
from spectral_mup.models.nanogpt import NanoGPT
from spectral_mup.theory.rules import Multipliers

V, T, D, L, H = 97, 16, 32, 3, 4  # vocabulary, context, width, depth, heads


def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of imports that are not ours
        return pytest.importorskip("transformers", reason="pip install transformers==5.23.0")


def nanogpt(tied: bool) -> NanoGPT:
    return NanoGPT(networks.nanogpt(context=T, heads=H, tied=tied), V, D, L)


def llama2(tied: bool, kv_heads: int, multipliers: Multipliers | None = None, **other) -> Llama2:
    keys = {"context": T, "heads": H, "kv_heads": kv_heads, "mlp_hidden": 88, "tied": tied} | other
    model = Llama2(networks.llama2(**keys), V, D, L)
    if multipliers is not None:
        model.set_multipliers(multipliers)
    return model


def gpt2(tied: bool) -> nn.Module:
    t = transformers()
    config = t.GPT2Config(vocab_size=V, n_positions=T, n_embd=D, n_layer=L, n_head=H, activation_function="gelu",
                          resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=tied)  # fmt: skip
    return t.GPT2LMHeadModel(config)


def llama(tied: bool, kv_heads: int) -> nn.Module:
    t = transformers()
    config = t.LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=88, num_hidden_layers=L, num_attention_heads=H,
                           num_key_value_heads=kv_heads, max_position_embeddings=T, rms_norm_eps=NORM_EPS,
                           tie_word_embeddings=tied, attention_bias=False)  # fmt: skip
    return t.LlamaForCausalLM(config)


def gpt2_names() -> dict[str, str]:
    """{ours: theirs}; their Conv1D holds matrices transposed and query, key, value side by side."""
    names = {"token": "transformer.wte", "position": "transformer.wpe", "norm": "transformer.ln_f", "readout": "lm_head"}
    for i in range(L):
        inside = {"norm_attention": "ln_1", "attention.out": "attn.c_proj", "norm_mlp": "ln_2", "mlp.up": "mlp.c_fc",
                  "mlp.down": "mlp.c_proj", "attention.qkv": "attn.c_attn"}  # fmt: skip
        names |= {f"blocks.{i}.{a}": f"transformer.h.{i}.{b}" for a, b in inside.items()}
    return names


def llama_names() -> dict[str, str]:
    names = {"token": "model.embed_tokens", "norm": "model.norm", "readout": "lm_head"}
    for i in range(L):
        inside = {"norm_attention": "input_layernorm", "norm_mlp": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj",
                  "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}  # fmt: skip
        inside |= {f"attention.{ours}": f"self_attn.{theirs}_proj"
                   for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "o"}.items()}  # fmt: skip
        names |= {f"blocks.{i}.{a}": f"model.layers.{i}.{b}" for a, b in inside.items()}
    return names


def theirs_of(tensors: dict[str, torch.Tensor], names: dict[str, str], transposed: bool) -> dict[str, torch.Tensor]:
    """Our tensors (weights or gradients) under their names and layout."""
    found = {}
    for ours, theirs in names.items():
        for part in ("weight", "bias"):
            if ours.endswith(".qkv"):
                parts = [tensors[f"{ours.removesuffix('qkv')}{which}.{part}"] for which in ("query", "key", "value")]
                t = torch.cat(parts)
            elif f"{ours}.{part}" in tensors:
                t = tensors[f"{ours}.{part}"]
            else:
                continue
            inside = ".h." in theirs and "ln_" not in theirs
            found[f"{theirs}.{part}"] = t.T.contiguous() if transposed and inside and part == "weight" else t
    return found


CASES = {
    "gpt2 tied": (lambda: nanogpt(True), lambda: gpt2(True), gpt2_names),
    "gpt2 untied": (lambda: nanogpt(False), lambda: gpt2(False), gpt2_names),
    "llama": (lambda: llama2(False, H), lambda: llama(False, H), llama_names),
    "llama grouped": (lambda: llama2(False, 2), lambda: llama(False, 2), llama_names),
    "llama one key head": (lambda: llama2(False, 1), lambda: llama(False, 1), llama_names),
    "llama grouped tied": (lambda: llama2(True, 2), lambda: llama(True, 2), llama_names),
}


def compare(ours: nn.Module, theirs: nn.Module, names: dict[str, str]) -> tuple[float, float]:
    """Largest differences of logits and of gradients with our weights in both; gradients relative to the largest of each."""
    transposed = "transformer.wte" in names.values()
    with torch.no_grad():
        for p in ours.parameters():  # biases and gains too, or their places could be swapped unseen
            p.add_(0.1 * torch.randn_like(p))
    mine = {n: p.detach() for n, p in ours.named_parameters(remove_duplicate=False)}
    missing, unexpected = theirs.load_state_dict(theirs_of(mine, names, transposed), strict=False)
    assert not unexpected and all(m.endswith((".attn.bias", ".attn.masked_bias")) for m in missing), (missing, unexpected)
    x, y = torch.randint(V, (2, 3, T))
    logits = theirs(input_ids=x).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    ours(x, y).backward()
    apart = (ours(x) - logits).abs().max().item()
    mine = {n: p.grad for n, p in ours.named_parameters(remove_duplicate=False)}
    gradients = theirs_of(mine, names, transposed)
    worst = 0.0
    for name, p in theirs.named_parameters():
        worst = max(worst, ((p.grad - gradients[name]).abs().max() / p.grad.abs().max().clamp_min(1e-2)).item())
    return apart, worst


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(case):
    torch.manual_seed(0)
    ours, theirs, names = CASES[case]
    logits, gradients = compare(ours(), theirs(), names())
    assert logits < 1e-5 and gradients < 1e-5, (logits, gradients)


@pytest.mark.parametrize("wrong", [{"rope_base": 9000.0}, {"multipliers": Multipliers(attention=0.3)},
                                   {"multipliers": Multipliers(attention=8**-0.5, branch=0.99)}])  # fmt: skip
def test_a_wrong_model_differs(wrong):
    torch.manual_seed(0)
    logits, gradients = compare(llama2(False, 2, **wrong), llama(False, 2), llama_names())
    assert logits > 1e-4 and gradients > 1e-4


def test_rotation_depends_on_distance_alone():
    from spectral_mup.models.layers import rotate, rotation

    turn = rotation(32, 8, 10000.0, torch.device("cpu"))
    q, k = torch.randn(2, 8).double()
    q_TE, k_TE = rotate(q.expand(1, 1, 32, 8), turn)[0, 0], rotate(k.expand(1, 1, 32, 8), turn)[0, 0]
    scores_TT = q_TE @ k_TE.T
    for distance in (0, 3, 11):
        along = scores_TT.diagonal(-distance)
        assert (along - along[0]).abs().max() < 1e-5  # angles are float32
    assert scores_TT.diagonal(-3)[0] != pytest.approx(scores_TT.diagonal(-11)[0].item(), abs=1e-3)


def parameters(model: nn.Module, without: str = "-") -> int:
    return sum(p.numel() for n, p in model.named_parameters() if without not in n)


def millions(n: int, digits: int) -> str:
    return f"{n / 1e6:.{digits}f}"


@pytest.mark.parametrize(
    "width, depth, printed", [(128, 8, "1.595"), (2048, 8, "403.0"), (256, 2, "1.597"), (256, 64, "50.56")]
)
def test_nanogpt_has_the_published_number_of_parameters(width, depth, printed):
    """arXiv 2602.20937: 1.59 M to 403 M over width, 1.6 M to 50.56 M over depth; biases, tied, positions not counted."""
    with torch.device("meta"):
        model = NanoGPT(networks.nanogpt(context=1024, heads=2, tied=True), 65, width, depth)
    assert millions(parameters(model, without="position"), len(printed.partition(".")[2])) == printed


@pytest.mark.parametrize("width, printed", [(128, "76.5"), (256, "154.28"), (2048, "1381.0")])
def test_llama2_has_the_published_number_of_parameters(width, printed):
    """arXiv 2602.20937: 154 M at width 256 to 1.38 B at 2048, with 32 heads on 8 and an MLP of 11008 at every width."""
    with torch.device("meta"):
        model, ungrouped = (
            Llama2(networks.llama2(heads=32, kv_heads=kv_heads, mlp_hidden=11008), 32000, width, 16) for kv_heads in (8, 32)
        )
    digits = len(printed.partition(".")[2])
    assert millions(parameters(model), digits) == printed != millions(parameters(ungrouped), digits)


def test_generating_sees_the_training_logits():
    """A token drawn at temperature 1 follows the logits of training, their multiplier and the cut context included."""
    model = llama2(False, 2, multipliers=Multipliers(attention=0.3, logits=50.0)).eval()
    x = torch.randint(V, (2, T + 3))
    drawn = model.generate(x, 1, torch.Generator().manual_seed(0))[:, -1]
    assert drawn.tolist() == model(x[:, 3:])[:, -1].argmax(-1).tolist()  # × 50 all but decides the draw
