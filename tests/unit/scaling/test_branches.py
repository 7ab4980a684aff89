"""Residual branches: found by forward passes, multiplied where they end, blocks compared with one of their kind."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import nn

from spectral_mup import scale, set_multipliers_
from spectral_mup.scaling.branches import BranchError, NotRun, find_branches
from spectral_mup.theory.growth import GrowthError

D, X = 32, torch.randint(0, 64, (2, 8), generator=torch.Generator().manual_seed(0))


def decoder(kind: str, width: int = D, depth: int = 2, **more):
    config = {"vocab_size": 64, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": 4, "use_cache": False}
    config |= {"num_key_value_heads": 4, "head_dim": width // 4, "intermediate_size": 2 * width, "max_position_embeddings": 32}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **config | special | more)
    ).eval()


def normed(block, x, attention, a):
    x = x + a * block.post_attention_layernorm(attention(x))
    return x + a * block.post_feedforward_layernorm(block.mlp(x))


def gemma(block, x, attention, a):
    x = x + a * block.post_attention_layernorm(attention(block.input_layernorm(x)))
    return x + a * block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(x)))


def experts(block, x, attention, a):
    x = x + a * attention(block.input_layernorm(x))
    return x + a * block.mlp(block.post_attention_layernorm(x))


def parallel(block, x, attention, a):
    return x + a * attention(block.input_layernorm(x)) + a * block.mlp(block.post_attention_layernorm(x))


def opt(block, x, attention, a):
    x = x + a * attention(block.self_attn_layer_norm(x))
    return x + a * block.fc2(block.activation_fn(block.fc1(block.final_layer_norm(x))))


BLOCKS = {
    "olmo2": (normed, "model.layers.", "self_attn"),
    "gemma2": (gemma, "model.layers.", "self_attn"),
    "mixtral": (experts, "model.layers.", "self_attn"),
    "gpt_neox": (parallel, "gpt_neox.layers.", "attention"),
    "opt": (opt, "model.decoder.layers.", "self_attn"),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_branch_is_multiplied_where_it_ends(kind):
    """Against the block's equation written by hand, x + a · branch(x), at depth 4 against 2."""
    equation, prefix, name = BLOCKS[kind]
    more = {"ffn_dim": 2 * D, "word_embed_proj_dim": D} if kind == "opt" else {}
    deep, base = (decoder(kind, depth=depth, **more) for depth in (4, 2))
    scaling = scale(deep, base, rule="spectral", residual_blocks=[prefix], wider=decoder(kind, 2 * D, **more))
    assert scaling.multipliers.branch == 0.5
    block = deep.get_submodule(f"{prefix}3")
    seen = []
    block.register_forward_hook(lambda _, args, named, out: seen.append((args, named, out)), with_kwargs=True)
    deep(X)
    ((args, named, before),) = seen
    x, named = (args[0], named) if args else (named["hidden_states"], {k: v for k, v in named.items() if k != "hidden_states"})

    def by_hand(a: float) -> torch.Tensor:
        return equation(block, x, lambda h: block.get_submodule(name)(hidden_states=h, **named)[0], a)

    with torch.no_grad():
        plain, expected = by_hand(1.0), by_hand(0.5)
        torch.testing.assert_close(before if isinstance(before, torch.Tensor) else before[0], plain)
        (said,) = [said for said in set_multipliers_(deep, scaling) if "branches" in said]
        assert said == f"branches × 0.5 at 8 modules of {prefix}"
        after = block(x, **named)
        torch.testing.assert_close(after if isinstance(after, torch.Tensor) else after[0], expected)
        assert not torch.allclose(plain, expected, rtol=1e-3)


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: float = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, int(ratio * width)), nn.Linear(int(ratio * width), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.norm(x)).relu())


class Pre(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class PostNorm(Mlp):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(self.up(x).relu()))


class Weighed(Mlp):
    """A branch with a factor of its own behind its last map, which no module puts out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(super().forward(x))


class Damped(Mlp):
    """The stream itself shrinks: what is left once all branches are zero is not the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 2 + super().forward(x)


class Net(nn.Module):
    def __init__(self, block: type, width: int, depth: int = 2, ratios: tuple[float, ...] = (4,)) -> None:
        super().__init__()
        self.body = nn.Linear(8, width)
        self.blocks = nn.ModuleList(block(width, ratios[i % len(ratios)]) for i in range(depth))
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def test_branches_are_found_in_a_model_of_ones_own_that_reads_features():
    assert find_branches(Net(Pre, 16), ["blocks."]) == {"blocks.0": ("down",), "blocks.1": ("down",)}
    zeros = Net(Pre, 16)
    for i in (0, 1):
        for p in zeros.get_submodule(f"blocks.{i}.down").parameters():
            nn.init.zeros_(p)
    with torch.device("meta"):
        meta = Net(Pre, 16)
    assert find_branches(zeros, ["blocks."]) == find_branches(meta, ["blocks."]) == find_branches(Net(Pre, 16), ["blocks."])
    model = Net(Pre, 64, depth=4)
    said = set_multipliers_(model, scale(model, Net(Pre, 16), rule="spectral", residual_blocks=["blocks."]))
    assert "branches × 0.5 at 4 modules of blocks." in said


@pytest.mark.parametrize("block", [PostNorm, Weighed, Damped])
def test_what_is_no_sum_of_branches_is_left_to_do_and_says_why(block):
    with pytest.raises(BranchError, match="^blocks.0 is not its input plus"):
        find_branches(Net(block, 16), ["blocks."])
    model = Net(block, 16, depth=4)
    scaling = scale(model, Net(block, 16), rule="spectral", residual_blocks=["blocks."], wider=Net(block, 32))
    with pytest.warns(UserWarning, match="^set_multipliers_: to do: multiply"):
        (said,) = set_multipliers_(model, scaling)
    assert said.startswith("to do: multiply the output of every residual branch in blocks. by 0.5 (blocks.0 is not its input")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_base_that_cannot_be_run_is_said():
    class Two(Net):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x + y)

    with pytest.raises(NotRun, match="could not be run .*missing 1 required positional argument"):
        find_branches(Two(Pre, 16), ["blocks."])


class Scores(NamedTuple):
    p: torch.Tensor
    index: torch.Tensor


ROUTERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "a mapping": lambda p: {"p": p},
    "a named tuple": lambda p: Scores(p, p.argmax(-1)),
    "indices and scores": lambda p: (p.argmax(-1), p),
    "indices": lambda p: p.argmax(-1),
    "nothing": lambda p: None,
    "a number": lambda p: 1.0,
}


INDEX = {"a named tuple": lambda told: told.index, "indices and scores": lambda told: told[0], "indices": lambda told: told}


class Router(nn.Module):
    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.scores, self.told = nn.Linear(width, 2), ROUTERS[kind]

    def forward(self, x: torch.Tensor) -> Any:
        return self.told(self.scores(x))


class Routed(Mlp):
    """A branch in which a module puts out something else than one tensor of numbers."""

    def __init__(self, width: int, ratio: float = 4, kind: str = "indices") -> None:
        super().__init__(width, ratio)
        self.router, self.table = Router(width, kind), nn.Embedding(2, width)
        self.index_of = INDEX.get(kind, lambda told: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        index = self.index_of(self.router(self.norm(x)))
        return x + super().forward(x if index is None else x * self.table.weight[index])


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_module_in_a_block_may_put_out_anything(kind):
    assert find_branches(Net(partial(Routed, kind=kind), 16), ["blocks."]) == {"blocks.0": ("down",), "blocks.1": ("down",)}


@pytest.mark.parametrize("put_out", [lambda h: {"h": h}, lambda h: (h, None), lambda h: Scores(h, h), lambda h: [h]])
def test_a_block_may_put_out_its_stream_among_others(put_out):
    class Block(Pre):
        def forward(self, x: Any) -> Any:
            return put_out(super().forward(next(iter(x.values())) if isinstance(x, dict) else x[0] if is_several(x) else x))

    def is_several(x: Any) -> bool:
        return isinstance(x, tuple | list)

    class Several(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h: Any = self.body(x)
            for block in self.blocks:
                out = block(h)
                h = next(iter(out.values())) if isinstance(out, dict) else out[0]
            return self.head(h)

    assert find_branches(Several(Block, 16), ["blocks."]) == {"blocks.0": ("down",), "blocks.1": ("down",)}
    model = Several(Block, 16, depth=4)
    x = torch.randn(2, 8)
    plain = model(x)
    scaling = scale(model, Several(Block, 16), rule="spectral", residual_blocks=["blocks."], wider=Several(Block, 32))
    assert "branches × 0.5 at 4 modules of blocks." in set_multipliers_(model, scaling)
    assert not torch.allclose(model(x), plain)


def test_a_block_that_puts_out_no_tensor_is_said():
    class Block(Pre):
        def forward(self, x: Any) -> Any:
            self.kept = super().forward(x)
            return None

    class Kept(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.body(x)
            for block in self.blocks:
                block(h)
                h = block.kept
            return self.head(h)

    with pytest.raises(BranchError, match="puts out no tensor, but a NoneType"):
        find_branches(Kept(Block, 16), ["blocks."])


def test_blocks_that_share_their_weights_are_counted_by_each_of_their_names():
    """As in ALBERT (arXiv 1909.11942): one block, used at every depth. Control: blocks with weights of their own."""

    def shared(width: int, depth: int) -> Net:
        net = Net(Pre, width)
        net.blocks = nn.ModuleList([net.blocks[0]] * depth)
        return net

    for build in (shared, lambda width, depth: Net(Pre, width, depth)):
        model = build(64, 16)
        scaling = scale(model, build(64, 2), rule="spectral", residual_blocks=["blocks."], wider=build(128, 2))
        assert scaling.multipliers.branch == 2 / 16
        set_multipliers_(model, scaling)
    model, x = shared(64, 16), torch.randn(2, 8)
    plain, block = model(x), model.blocks[0]
    set_multipliers_(model, scale(model, shared(64, 2), rule="spectral", residual_blocks=["blocks."], wider=shared(128, 2)))
    h = model.body(x)
    for _ in range(16):
        h = h + Mlp.forward(block, h)  # with the factor, which `down` carries
    torch.testing.assert_close(model(x), model.head(h))
    assert not torch.allclose(model(x), plain)


@pytest.mark.parametrize("kind, told", [("llama", 8), ("gemma2", 0), ("mixtral", 0), ("olmo2", 0)])
def test_names_tell_branches_only_where_each_block_has_two_that_add_what_they_put_out(kind, told, monkeypatch):
    """Of a base too large to run. A norm behind the named maps would divide their factor out; experts have other names."""
    monkeypatch.setattr("spectral_mup.scaling.branches.LARGEST", 10)
    deep, base, prefix = decoder(kind, depth=4), decoder(kind), "model.layers."
    scaling = scale(deep, base, rule="spectral", residual_blocks=[prefix], wider=decoder(kind, 2 * D))
    found = scaling.branches[prefix]
    assert len(found.ends) == told and "a base of" in found.doubt
    if not told:
        with pytest.warns(UserWarning, match="to do: multiply the output of every residual branch"):
            set_multipliers_(deep, scaling)


M = 4


@pytest.mark.parametrize("ratios, depth", [((4, 2), 4), ((4, 2, 2), 6), ((4, 4, 4, 2), 8)])
def test_a_block_is_compared_with_one_of_its_kind(ratios, depth):
    """Adam's lr is 1/m of every hidden matrix (Table 3 of arXiv 2203.03466), times the depth's own 1 for spectral."""
    base = Net(Pre, 16, len(ratios), ratios)
    scaling = scale(Net(Pre, 16 * M, depth, ratios), base, rule="spectral", residual_blocks=["blocks."])
    for name, s in scaling.items():
        if "up.weight" in name or "down.weight" in name:
            assert (s.lr, s.init_std) == pytest.approx((1 / M, M**-0.5)), name
            assert (scaling.growths[name].m_out, scaling.growths[name].m_in) == (M, M)


def test_kinds_are_told_at_the_same_width_and_with_mlps_that_are_rounded():
    narrow = scale(Net(Pre, 16, 4, (4, 2)), Net(Pre, 16, 2, (4, 2)), residual_blocks=["blocks."], wider=Net(Pre, 32, 2, (4, 2)))
    assert narrow.mates["blocks.3"] == "blocks.1" and {s.lr for s in narrow.values()} == {1.0}
    rounded = scale(Net(Pre, 64, 4, (2.7, 1.35)), Net(Pre, 18, 2, (2.7, 1.35)), residual_blocks=["blocks."])
    assert rounded.mates == {f"blocks.{i}": f"blocks.{i % 2}" for i in range(4)}


@pytest.mark.parametrize(
    "model, base, missing",
    [
        ((4, 2, 4, 1), (4, 2), r"blocks.3: .* \(up.weight is \(64, 64\), the nearest there \(32, 16\)\)"),
        ((0.5, 1.5, 3, 4), (0.5, 4), r"blocks.1: .* \(up.weight is \(96, 64\), the nearest there \(64, 16\)\)"),
    ],
)
def test_a_kind_that_the_base_lacks_is_named(model, base, missing):
    with pytest.raises(GrowthError, match=f"^{missing}; build the base so deep"):
        scale(Net(Pre, 64, 4, model), Net(Pre, 16, 2, base), residual_blocks=["blocks."])


def test_dense_blocks_before_experts_are_kinds_by_their_names():
    """The first block of DeepSeek is dense; a base of one block has none with experts."""

    def build(width: int, depth: int):
        return decoder("qwen3_moe", width, depth, mlp_only_layers=[0], num_experts=4, moe_intermediate_size=2 * width)

    scaling = scale(build(M * D, 4), build(D, 2), rule="spectral")
    assert scaling.mates == {f"model.layers.{i}": f"model.layers.{min(i, 1)}" for i in range(4)}
    assert scaling["model.layers.3.mlp.experts.down_proj"].lr == 1 / M
    with pytest.raises(GrowthError, match="^model.layers.1: the base model has no block of its kind .one with mlp.experts"):
        scale(build(M * D, 4), build(D, 1), rule="spectral")
