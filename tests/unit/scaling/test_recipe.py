"""A recipe is the numbers that a real model trains with, and its patterns share the tensors out among the groups."""

import json
import re
import runpy
import sys
import types
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
import torch
import transformers
from support import ROOT, networks
from support.networks import gpt, mlp
from support.runs import build_run, first_point, optimizers_of
from torch import nn

import spectral_mup as sm
from spectral_mup.scaling.recipe import Recipe, recipe_of
from spectral_mup.scaling.run_scaling import hyperparameters, scale_on_meta
from spectral_mup.theory.rules import UpdateScaling
from spectral_mup.util.text import COLUMNS

OPTIMIZERS = ("adamw", "adopt", "lamb", "muon", "sgd", "shampoo", "soap", "sophia")


def group_of(recipe: Recipe, name: str):
    """The group of a tensor; fails unless exactly one pattern matches."""
    (group,) = [group for group in recipe.groups if re.search(group.pattern, name)]
    return group


def trained(optimizers) -> dict[str, dict[str, Any]]:
    return {name: group for o in optimizers for group in o.param_groups for name in group["names"]}


@pytest.mark.parametrize("family", ["nanogpt", "llama2"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_numbers_and_groups_are_those_of_the_model_that_trains(tiny, family, optimizer):
    decay = "independent" if optimizer in ("adamw", "muon") else "coupled"
    grown = ["sweep.width=[32,64]", "sweep.depth=[4]", "sweep.base_depth=2", f"train.weight_decay={decay}"]
    run = first_point(tiny(f"model={family}", f"optimizer={optimizer}", "rule=[spectral]", *grown), width=64, log2_lr=-5.75)
    recipe = recipe_of(scale_on_meta(run, 256), **hyperparameters(run))
    model, scaling = build_run(run)
    groups = trained(optimizers_of(model, scaling, run))
    for name, p in model.named_parameters():
        mine, own = group_of(recipe, name), groups[name]
        assert mine.shape == tuple(p.shape) and mine.optimizer == scaling.algorithm[name]
        assert (mine.lr, mine.weight_decay) == pytest.approx((own["lr"], own["weight_decay"]))
        assert mine.eps == pytest.approx(own["eps"]) if mine.eps else mine.eps is None and "eps_scale" not in own
        if mine.init_std is not None:
            assert float(p.detach().std()) == pytest.approx(mine.init_std, rel=0.1)
    assert sum(group.tensors for group in recipe.groups) == len(list(model.parameters()))
    assert sum("*" in group.name for group in recipe.groups) == sum(group.tensors == 4 for group in recipe.groups) > 4
    assert recipe.forward == pytest.approx(asdict(sm.multipliers(scaling)))
    assert recipe.optimizers.keys() == {o for o in scaling.algorithm.values()}
    assert max(map(len, str(recipe).splitlines())) <= COLUMNS


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_model_of_ones_own(optimizer):
    """Functions that build it, its modules, and its tensors one by one where they differ."""
    torch.manual_seed(0)
    keys: Any = {"optimizer": optimizer, "lr": 2**-7, "weight_decay": 0.1}
    recipe, model, base = sm.recipe(lambda: mlp(64), lambda: mlp(16), **keys), mlp(64), mlp(16)
    for other in (sm.recipe(lambda: mlp(64), lambda: mlp(16), **keys), sm.recipe(model, lambda: mlp(16), **keys)):
        assert other == recipe  # the same draw of the base each time
    groups = trained(sm.make_optimizers(model, sm.scale(model, base, optimizer=optimizer), lr=2**-7, weight_decay=0.1))
    for name in dict(model.named_parameters()):
        mine = group_of(recipe, name)
        assert (mine.lr, mine.weight_decay) == pytest.approx((groups[name]["lr"], groups[name]["weight_decay"]))
        assert mine.name == name and mine.tensors == 1
    state = torch.get_rng_state()
    sm.recipe(lambda: mlp(64), lambda: mlp(16), **keys)
    assert torch.equal(torch.get_rng_state(), state)


def test_names_that_contain_one_another_are_told_apart():
    class Odd(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.up2 = nn.Linear(8, width), nn.Linear(width, width)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Linear(width, 4 * width)) for _ in range(11))
            self.inner = nn.ModuleDict({"up": nn.Linear(width, width)})

    recipe = sm.recipe(lambda: Odd(64), lambda: Odd(16), lr=0.01)
    for name, p in Odd(64).named_parameters():
        assert group_of(recipe, name).shape == tuple(p.shape)


def test_a_large_model_costs_neither_memory_nor_time():
    """Weights that would take 70 GB: the function that builds them is called on the meta device."""
    config = networks.llama2(head_size=128, mlp_ratio=4.0)
    made = []

    def build(width: int, depth: int):
        made.append(config.build(32000, width, depth))
        return made[-1]

    recipe = sm.recipe(lambda: build(8192, 16), lambda: build(128, 2), lr=0.01, optimizer="muon", residual_blocks=("blocks.",))
    assert all(p.is_meta for p in made[0].parameters()) and not any(p.is_meta for p in made[1].parameters())
    query = group_of(recipe, "blocks.15.attention.query.weight")
    assert (query.shape, query.tensors) == ((8192, 8192), 16) and query.init_std == pytest.approx((3 * 8192) ** -0.5, rel=0.05)
    assert recipe.forward["branch"] == 1 / 8


def test_it_is_plain_data():
    recipe = sm.recipe(lambda: mlp(64), lambda: mlp(16), lr=0.01, optimizer=UpdateScaling("mine", {"m_in": 1}))
    assert json.loads(recipe.to_json()) == json.loads(json.dumps(recipe.to_dict()))
    assert recipe.forward["attention"] is None and recipe.optimizers == {"mine": {"target": None, "args": {}}}
    assert str(recipe).splitlines()[0] == "forward pass: attention –, branch 1, logits 1, embedding 1"
    hidden = next(line.split() for line in str(recipe).splitlines() if line.startswith("  2.weight"))
    assert hidden[2] == "0.0025"  # 0.01 · (m_out/m_in)^1/2 / m_in
    with pytest.raises(ValueError, match="nadamw"):
        sm.recipe(lambda: mlp(64), lambda: mlp(16), lr=0.01, optimizer="nadamw")


# --- trainers elsewhere ------------------------------------------------------------------------------------------------


@pytest.fixture
def example(monkeypatch):
    """Function of an example's name and stand-ins for what it imports to its functions."""

    def load(name: str, **modules: dict[str, Any]) -> types.SimpleNamespace:
        for path, content in modules.items():
            parts = path.split("__")
            for i in range(1, len(parts) + 1):
                monkeypatch.setitem(sys.modules, ".".join(parts[:i]), types.ModuleType(parts[i - 1]))
            vars(sys.modules[".".join(parts)]).update(content)
        return types.SimpleNamespace(**runpy.run_path(str(ROOT / "examples" / f"{name}.py")))

    return load


LR, DECAY = 2**-7, 0.1


@pytest.fixture
def parts():
    """A model, its recipe as a file would hold it, and the parameter groups that `make_optimizers` gives it."""
    model, base = gpt(32, depth=3), gpt(16)
    scaling = sm.scale(model, base, residual_blocks=("blocks.",))
    recipe = sm.recipe(model, base, lr=LR, weight_decay=DECAY, residual_blocks=("blocks.",))
    return model, json.loads(recipe.to_json()), trained(sm.make_optimizers(model, scaling, lr=LR, weight_decay=DECAY))


def assert_drawn(model: nn.Module, recipe: dict[str, Any], before: dict[str, torch.Tensor], prefix: str = "") -> None:
    for name, p in model.named_parameters():
        (g,) = [g for g in recipe["groups"] if re.search(g["pattern"], name.removeprefix(prefix))]
        if g["init_std"] is None:
            assert torch.equal(p, before[name])
        else:
            assert float(p.detach().std()) == pytest.approx(g["init_std"], rel=0.15)


def spoiled(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter filled with sevens, so that a draw is seen."""
    for p in model.parameters():
        nn.init.constant_(p, 7.0)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@dataclass
class ParamGroupConfig:
    pattern: str
    optimizer_name: str
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)


class OptimizersContainer:
    @dataclass
    class Config:
        param_groups: list[ParamGroupConfig]


@pytest.mark.parametrize("wrapper", ["", "_checkpoint_wrapped_module.", "_checkpoint_wrapped_module._orig_mod."])
def test_torchtitan(example, parts, wrapper):
    model, recipe, groups = parts
    content = {"OptimizersContainer": OptimizersContainer, "ParamGroupConfig": ParamGroupConfig}
    titan = example("recipe_torchtitan", torchtitan__components__optimizer=content)
    config = titan.optimizer_config(recipe)
    for name in groups:
        seen = re.sub(r"^(blocks\.\d+\.)", rf"\1{wrapper}", name)
        (mine,) = [c for c in config.param_groups if re.search(c.pattern, seen)]
        assert mine.optimizer_name == "AdamW" and mine.optimizer_kwargs["betas"] == [0.9, 0.95]
        own = {key: groups[name][key] for key in ("lr", "weight_decay", "eps")}
        assert {key: mine.optimizer_kwargs[key] for key in own} == pytest.approx(own)
        torch.optim.AdamW(model.parameters(), **mine.optimizer_kwargs)
    before = spoiled(model)
    titan.init_(model, recipe)
    assert_drawn(model, recipe, before)


@dataclass(frozen=True)
class ParamWithNamePredicate:
    name: str
    fn: Any = field(compare=False, hash=False)


@dataclass(frozen=True)
class ParamKey:
    with_name_predicate: ParamWithNamePredicate


def test_megatron(example, parts):
    """Inside two wrappers, as Float16Module and DistributedDataParallel are."""
    model, recipe, groups = parts
    content = {"ParamKey": ParamKey, "ParamWithNamePredicate": ParamWithNamePredicate}
    megatron = example("recipe_megatron", megatron__core__optimizer=content)
    overrides = megatron.config_overrides(recipe, min_lr=0.1)
    assert len(overrides) == len(recipe["groups"])  # no two keys are equal
    wrapped = nn.ModuleDict({"module": nn.ModuleDict({"module": model})})
    for name, p in wrapped.named_parameters():
        (mine,) = [values for key, values in overrides.items() if key.with_name_predicate.fn(p, name)]
        own = groups[name.removeprefix("module.module.")]
        assert (mine["max_lr"], mine["min_lr"], mine["eps"]) == pytest.approx((own["lr"], own["lr"] / 10, own["eps"]))
        assert mine["start_wd"] == mine["end_wd"] == pytest.approx(own["weight_decay"])
    before = spoiled(wrapped)
    megatron.init_(wrapped, recipe)
    assert_drawn(wrapped, recipe, before, "module.module.")


class StandIn:
    """What the Trainer of transformers is given, which needs a further package to be built."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments


def test_hugging_face(monkeypatch):
    """A Llama trains a step with the optimizer that its Trainer would be given, and its logits carry the multiplier."""
    keys: Any = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": False}

    def build(width: int):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(hidden_size=width, intermediate_size=2 * width, **keys))

    model, base = build(32), build(16)
    rule: Any = {"rule": "spectral"}
    recipe = json.loads(sm.recipe(lambda: build(32), base, lr=LR, weight_decay=DECAY, **rule).to_json())
    functions = runpy.run_path(str(ROOT / "examples" / "recipe_huggingface.py"))
    monkeypatch.setitem(functions["trainer"].__globals__, "Trainer", StandIn)
    before = spoiled(model)
    given = functions["trainer"](model, recipe, train_dataset=[1]).arguments
    optimizer, schedule = given["optimizers"]
    assert (given["model"], given["train_dataset"], schedule) == (model, [1], None)
    assert_drawn(model, recipe, before)

    scaling = sm.scale(model, base, **rule)
    groups = trained(sm.make_optimizers(model, scaling, lr=LR, weight_decay=DECAY))
    names = {id(p): name for name, p in model.named_parameters()}
    mine = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert mine.keys() == groups.keys()
    for name, group in mine.items():
        assert (group["lr"], group["eps"]) == pytest.approx((groups[name]["lr"], groups[name]["eps"]))

    x = torch.arange(16).view(2, 8)
    logits = model(x).logits
    plain = build(32)
    plain.load_state_dict(model.state_dict())
    sm.set_multipliers_(plain, scaling)
    torch.testing.assert_close(logits, plain(x).logits)
    model(input_ids=x, labels=x).loss.backward()
    optimizer.step()
    assert not torch.equal(model(x).logits, logits)
