"""What large models need: a loss without all logits in memory, activations made again, attention that flash kernels take."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import networks
from support.runs import first_point, run_point
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from spectral_mup.models import layers
from spectral_mup.models.layers import LanguageModel, groups_heads
from spectral_mup.models.llama2 import Llama2
from spectral_mup.models.nanogpt import NanoGPT
from spectral_mup.theory.rules import Multipliers
from spectral_mup.util.files import read_rows

V, B, T, D, L, H = 600, 2, 53, 32, 2, 4  # vocabulary, sequences, time, width, depth, heads
LIMIT = 9_000  # of logits in memory; 8 chunks, of which the last is shorter


def model(family: str = "nanogpt", tied: bool = False, dropout: float = 0.0) -> LanguageModel:
    torch.manual_seed(0)
    common = {"context": T, "heads": H, "tied": tied, "dropout": dropout}
    if family == "nanogpt":
        built = NanoGPT(networks.nanogpt(**common), V, D, L)
    else:
        built = Llama2(networks.llama2(**common, kv_heads=2, mlp_ratio=2.0), V, D, L)
    built.set_multipliers(Multipliers(attention=0.3, logits=3.0))
    return built


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.randint(V, (2, B, T), generator=torch.Generator().manual_seed(1))
    return x, y


def gradients(m: nn.Module, bfloat16: bool = False) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients, with the draws of a fixed seed."""
    torch.manual_seed(2)
    m.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = m(*batch())
    loss.backward()
    return loss.item(), [p.grad.clone() for p in m.parameters()]


def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """The largest ‖a − b‖/‖b‖."""
    return max(float((p - q).norm() / q.norm()) for p, q in zip(a, b, strict=True))


@pytest.fixture
def in_chunks(monkeypatch):
    """Function after which logits of more than LIMIT entries are made in chunks."""
    assert math.ceil(B * T * V / LIMIT) == 8 and B * T % 8
    return lambda: monkeypatch.setattr(layers, "LARGE_LOGITS", LIMIT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family, tied", [("nanogpt", False), ("llama2", True)])
def test_a_loss_in_chunks_is_the_cross_entropy(in_chunks, family, tied, dtype):
    """Logits are rounded to float32 in every dtype, so no closer than that."""
    m = model(family, tied).to(dtype)
    x, y = batch()
    expected = F.cross_entropy(m(x).flatten(0, 1).float(), y.flatten())
    expected.backward()
    theirs = [p.grad.clone() for p in m.parameters()]
    in_chunks()
    loss, ours = gradients(m)
    assert loss == pytest.approx(expected.item(), rel=1e-6) and apart(ours, theirs) < 1e-6
    with torch.no_grad():
        assert m(x, y).item() == loss
        y[-1, -1] = (y[-1, -1] + 1) % V  # the control: one label of the last chunk
    m.zero_grad()
    m(x, y).backward()
    assert apart([p.grad for p in m.parameters()], theirs) > 1e-3


def test_under_bfloat16_chunks_are_summed_in_float32(in_chunks):
    """Against float32, gradients are as far off as without chunks; summed in bfloat16 those of the readout would be twice."""
    m = model()
    readout = [name for name, _ in m.named_parameters()].index("readout.weight")
    exact = gradients(m)[1]
    loss, whole = gradients(m, bfloat16=True)
    in_chunks()
    chunked, ours = gradients(m, bfloat16=True)
    assert chunked == pytest.approx(loss, rel=1e-5) and apart(ours, exact) < 1.1 * apart(whole, exact)
    assert 1e-3 < apart(ours[readout:], exact[readout:]) < 1.1 * apart(whole[readout:], exact[readout:])


class Largest(TorchDispatchMode):
    """Entries of the largest tensor that any operation puts out while it is open; none may wait for a device."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), func
        out = func(*args, **kwargs or {})
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor):
                self.entries = max(self.entries, t.numel())
        return out


@pytest.mark.parametrize("bfloat16", [False, True])
def test_chunks_keep_the_logits_out_of_memory(in_chunks, bfloat16):
    def largest(m: nn.Module) -> int:
        with Largest() as spy:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = m(*batch())
            loss.backward()
        return spy.entries

    m = model()
    assert largest(m) == B * T * V
    in_chunks()
    assert largest(m) == V * D < B * T * V / 2  # the readout's weight
    m.checkpoint_blocks(random=False)
    assert largest(m) == V * D
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Largest():
        m(*batch()).item()  # the control: this waits


def test_few_logits_are_not_cut(monkeypatch):
    """To the bit the loss as it always was: with a byte vocabulary up to half a million tokens."""
    monkeypatch.setattr(layers, "chunked_cross_entropy", None)
    assert layers.LARGE_LOGITS == 2**19 * 256
    monkeypatch.setattr(layers, "LARGE_LOGITS", B * T * V)
    gradients(model())
    monkeypatch.setattr(layers, "LARGE_LOGITS", B * T * V - 1)
    with pytest.raises(TypeError):
        gradients(model())


@pytest.mark.parametrize("family", ["nanogpt", "llama2"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activations_made_again_are_the_same_and_are_not_kept(family, dropout):
    def saved(m: nn.Module) -> int:
        """Bytes that a forward pass keeps for its backward pass, apart from parameters."""
        kept: dict[int, int] = {}
        own = {p.untyped_storage().data_ptr() for p in m.parameters()}

        def pack(t: torch.Tensor) -> torch.Tensor:
            if (address := t.untyped_storage().data_ptr()) not in own:
                kept[address] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = m.features(batch()[0]).sum()  # type: ignore[operator]
        del loss
        return sum(kept.values())

    kept, again = model(family, dropout=dropout), model(family, dropout=dropout)
    seen: list[str] = []
    again.blocks[0].register_forward_hook(lambda *_: seen.append("block"))
    again.checkpoint_blocks(random=dropout > 0)
    (a, ours), (b, theirs) = gradients(again), gradients(kept)
    assert a == b and all(p.equal(q) for p, q in zip(ours, theirs, strict=True))
    assert seen == ["block"]  # a hook sees the forward pass alone
    assert saved(again) < saved(kept) / 3
    if dropout:
        forgetful = model(family, dropout=dropout)
        forgetful.checkpoint_blocks(random=False)
        assert apart(gradients(forgetful)[1], theirs) > 0.01  # the control: other draws the second time


def test_without_dropout_no_generator_is_asked(in_chunks, monkeypatch):
    """Which nothing may do while a CUDA graph is captured."""
    in_chunks()
    m = model(dropout=0.0)
    m.checkpoint_blocks(random=False)
    monkeypatch.setattr(torch, "get_rng_state", None)
    gradients(m)
    m.checkpoint_blocks(random=True)
    with pytest.raises(TypeError):
        gradients(m)


def test_both_are_captured_in_one_graph_by_torch_compile(in_chunks):
    m = model("llama2", tied=True)
    expected = gradients(m)
    in_chunks()
    m.checkpoint_blocks(random=False)
    loss, ours = gradients(torch.compile(m, backend="aot_eager", fullgraph=True))
    assert loss == pytest.approx(expected[0], rel=1e-6) and apart(ours, expected[1]) < 1e-5


def test_a_run_with_activations_made_again_is_the_same_to_the_byte(tiny, corpus, tmp_path):
    """Its losses, and what the probes read through their hooks; and it is the same run."""
    kept, again = (
        first_point(tiny("model.dropout=0.1", "train.accumulate=2", f"train.checkpoint_activations={x}")) for x in (False, True)
    )
    assert kept.run_id == again.run_id
    folders = [run_point(point, tmp_path / str(i), corpus)[0] for i, point in enumerate((kept, again))]
    for name in ("metrics.jsonl", "norms.jsonl"):
        first, second = ((folder.path / name).read_bytes() for folder in folders)
        assert first == second and first


def test_sampled_labels_do_not_notice_chunks(tiny, corpus, tmp_path, monkeypatch):
    """Sophia draws them from logits that are there at once."""
    point = first_point(tiny("optimizer=sophia", "optimizer.algorithms.sophia.args.hessian_interval=4"))
    losses = []
    for limit in (layers.LARGE_LOGITS, 2000):
        monkeypatch.setattr(layers, "LARGE_LOGITS", limit)
        folder, _ = run_point(point, tmp_path / str(limit), corpus)
        losses.append([row["loss"] for row in read_rows(folder.path / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != losses[1]


@pytest.mark.parametrize("family", ["nanogpt", "llama2"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_attention_is_called_such_that_flash_kernels_take_it(family, bfloat16, monkeypatch):
    """No mask, features side by side in memory, half precision under autocast; the CPU's kernel asks for that layout too."""
    seen = []
    real = F.scaled_dot_product_attention

    def spy(*qkv: torch.Tensor, **options):
        seen.append((qkv, options))
        return real(*qkv, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        gradients(model(family), bfloat16)
    assert len(seen) == L
    for qkv, options in seen:
        assert all(t.dtype == (torch.bfloat16 if bfloat16 else torch.float32) and t.stride(-1) == 1 for t in qkv)
        assert options["is_causal"] and options.get("attn_mask") is None and options["enable_gqa"] == (family == "llama2")
    turned = [t.mT.contiguous().mT for t in seen[0][0]]
    with pytest.warns(UserWarning), pytest.raises(RuntimeError), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        real(*turned, is_causal=True)  # the control: another layout is refused


def test_keys_are_copied_where_no_kernel_lets_heads_share_them(monkeypatch):
    """On CUDA in float32 or with large heads; on a CPU, and under bfloat16 there, never. The numbers are the same."""
    cases = {(where, dtype, size): groups_heads(where, dtype, size) for where in ("cpu", "cuda")
             for dtype in (torch.bfloat16, torch.float32) for size in (64, 512)}  # fmt: skip
    assert [case for case, grouped in cases.items() if not grouped] == [
        ("cuda", torch.bfloat16, 512), ("cuda", torch.float32, 64), ("cuda", torch.float32, 512),
    ]  # fmt: skip
    shared = gradients(model("llama2"))
    monkeypatch.setattr(layers, "groups_heads", lambda *_: False)
    real = F.scaled_dot_product_attention

    def ungrouped(q, k, v, **options):
        assert not options["enable_gqa"] and q.shape == k.shape == v.shape
        return real(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", ungrouped)
    copied = gradients(model("llama2"))
    assert copied[0] == pytest.approx(shared[0], rel=1e-6) and apart(copied[1], shared[1]) < 1e-5
