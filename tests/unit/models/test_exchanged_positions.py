"""examples/exchanged_positions: the families with their positions exchanged are built, scaled, and know the order of tokens."""

import pytest
import torch
from support import ROOT

from spectral_mup.config.compose import load_config
from spectral_mup.runs.sweep import open_sweep
from spectral_mup.scaling.init import init_
from spectral_mup.scaling.run_scaling import scale_run
from spectral_mup.search.plan import make_plan


@pytest.mark.parametrize("name, sweep, table", [("rotary_nanogpt", "depth", False), ("learned_llama2", "llama2_depth", True)])
def test_a_model_knows_the_order_by_a_table_or_by_rotation(name, sweep, table, monkeypatch):
    folder = ROOT / "examples" / "exchanged_positions"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    config = load_config(
        [f"sweep=mini/{sweep}", f"model={name}", "rule=[spectral]", "data=pydoc", "sweep.depth=[1]", "sweep.base_depth=1"]
    )
    run = make_plan(open_sweep(config), lambda run: None).runs[0]
    model = run.model.build(256, run.width, run.depth)
    scaling = scale_run(run, model, 256)
    init_(model, scaling, seed=0)
    assert ("position.weight" in dict(model.named_parameters())) == table
    assert not table or scaling.growths["position.weight"].kind == "embedding"
    x = torch.tensor([[3, 5, 7, 9]])
    swapped = x[:, [1, 0, 2, 3]]
    change = model(x)[:, -1] - model(swapped)[:, -1]
    assert change.abs().max() > 1e-3
    if table:  # without it the last token of one block sees a set
        torch.nn.init.zeros_(model.get_parameter("position.weight"))
        torch.testing.assert_close(model(x)[:, -1], model(swapped)[:, -1], atol=1e-5, rtol=0)
