"""Laws of the trainer: killed and resumed equals unbroken, divergence is a result, bad disks lose nothing."""

import errno
import json
import math
import os

import numpy as np
import pytest
import torch
from support.cli import RESULT
from support.runs import build_run, bury, first_point, optimizers_of, run_point

from spectral_mup import data
from spectral_mup.errors import RecordError
from spectral_mup.optim.sophia import Sophia
from spectral_mup.runs.metrics import read_metrics
from spectral_mup.runs.run_folder import ClaimedError, RunFolder
from spectral_mup.training.divergence import divergence
from spectral_mup.training.schedule import schedule_factor
from spectral_mup.training.stopwatch import flops_per_token, peak_flops
from spectral_mup.training.trainer import sampled_label_loss
from spectral_mup.util.files import read_rows, write_atomic

FILES = ("result.json", "metrics.jsonl", "norms.jsonl")


def contents(folder: RunFolder) -> list[bytes]:
    return [(folder.path / name).read_bytes() for name in FILES]


def interrupted(point, runs, corpus, *stops: int):
    """Train the run, asked to stop before each of these steps, as by Ctrl-C; resumed each time in a fresh claim."""
    for stop in (*stops, None):
        steps = iter(range(10**6))
        asked = (lambda stop=stop, steps=steps: stop is not None and next(steps) >= stop) if stop else (lambda: False)
        folder = RunFolder(runs, point.run_id)
        folder.write_config(point.to_json())
        if folder.owner() is not None:  # as if its process had died
            bury(folder)
        folder, result = run_point(point, runs, corpus, should_stop=asked)
        assert (result is None) == (stop is not None)
    return folder


OPTIMIZERS = {  # intervals such that a run is stopped between two of their ends
    "adamw": [], "sgd": [], "muon": [], "adopt": [], "lamb": [], "lion": [],
    "sophia": ["optimizer.algorithms.sophia.args.hessian_interval=4"],
    "shampoo": ["optimizer.algorithms.shampoo.args.interval=4"],
    "soap": ["optimizer.algorithms.soap.args.interval=4"],
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_equals_unbroken_bit_for_bit(tiny, corpus, tmp_path, optimizer):
    options = ["model.dropout=0.1", "train.eval_every=5", "train.clip=1.0", "train.accumulate=2", *OPTIMIZERS[optimizer]]
    config = tiny(f"optimizer={optimizer}", *options)
    point = first_point(config)
    whole, _ = run_point(point, tmp_path / "whole", corpus)
    broken = interrupted(point, tmp_path / "broken", corpus, 3, 2, 4)
    assert contents(whole) == contents(broken)
    other, _ = run_point(first_point(config, seed=1), tmp_path / "whole", corpus)
    assert contents(other) != contents(whole)


def test_resume_forgets_rows_after_the_checkpoint_and_a_cut_line(tiny, corpus, tmp_path):
    point = first_point(tiny())
    whole, _ = run_point(point, tmp_path / "whole", corpus)
    runs = tmp_path / "broken"
    folder = RunFolder(runs, point.run_id)
    folder.write_config(point.to_json())
    stops = iter(range(100))
    run_point(point, runs, corpus, should_stop=lambda: next(stops) >= 8)
    for name in ("metrics.jsonl", "norms.jsonl"):
        with (folder.path / name).open("a") as f:
            f.write('{"step": 11, "loss": 9.0}\n{"step": 12, "lo')
    bury(folder)
    resumed, _ = run_point(point, runs, corpus)
    assert contents(resumed) == contents(whole)


@pytest.mark.parametrize("damage", ["truncate", "empty", "noise"])
def test_damaged_checkpoint_falls_back(tiny, corpus, tmp_path, damage, caplog):
    """The newest checkpoint is broken: the one before it is used, or a fresh start, it is said, and the end is the same."""
    point = first_point(tiny())
    whole, _ = run_point(point, tmp_path / "whole", corpus)
    for stops in ([4], [4, 4]):
        runs = tmp_path / f"broken{len(stops)}"
        folder = RunFolder(runs, point.run_id)
        folder.write_config(point.to_json())
        for stop in stops:
            bury(folder)
            steps = iter(range(100))
            run_point(point, runs, corpus, should_stop=lambda s=steps, n=stop: next(s) >= n)
        newest = sorted(folder.checkpoints.glob("*.pt"))[-1]
        data = newest.read_bytes()
        newest.write_bytes({"truncate": data[: len(data) // 2], "empty": b"", "noise": b"x" * len(data)}[damage])
        bury(folder)
        resumed, _ = run_point(point, runs, corpus)
        assert f"{newest.name} is damaged and was moved aside" in caplog.text and contents(resumed) == contents(whole)
        assert not list(folder.checkpoints.glob("*"))  # once it has ended


def test_nan_from_the_first_step_is_a_result(tiny, corpus, tmp_path):
    folder, result = run_point(first_point(tiny("train.warmup=0"), log2_lr=16), tmp_path, corpus)
    assert result["status"] == "diverged" and result["diverged_step"] <= 12 and result["val_loss"] is None
    config = tiny("model.init_std.hidden=1e30", "model.init_std.readout=1e30")
    folder, result = run_point(first_point(config), tmp_path, corpus)
    assert (result["status"], result["diverged_step"]) == ("diverged", 1)
    rows = list(read_rows(folder.path / "metrics.jsonl"))
    assert rows[0] == {"step": 1, "loss": None, "lr": 2**-6 / 2, "grad_norm": None}
    json.loads((folder.path / "result.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_a_diverged_run_is_the_same_however_often_it_looked(tiny, corpus, tmp_path):
    """When the loop notices depends on log_every and on stops; what is recorded does not."""
    point = first_point(tiny("train.diverge_factor=1.0", "train.diverge_patience=3"), log2_lr=2)
    once, result = run_point(point, tmp_path / "once", corpus)
    assert result["status"] == "diverged" and result["diverged_step"] < 12
    often = interrupted(point, tmp_path / "often", corpus, 2, 1)
    assert contents(once) == contents(often)


def test_divergence_rule():
    assert divergence([5.0, 4.0, math.nan, 4.0], 2, 3) == 3
    assert divergence([5.0, math.inf], 2, 3) == 2
    assert divergence([5.0, 11.0, 11.0, 4.0, 11.0, 11.0], 2, 3) is None
    assert divergence([5.0, 11.0, 11.0, 12.0], 2, 3) == 4
    assert divergence([5.0, 9.9] * 50, 2, 3) is None
    losses = [5.0, 4.0, 11.0, 11.0, 4.0, 12.0, 12.0, 12.0, 13.0]
    assert [divergence(losses[:n], 2, 3, n - 1) for n in range(1, 10)] == [None] * 7 + [8, 8]


def test_schedules():
    def factors(schedule, **kwargs):
        return [
            schedule_factor(s, schedule=schedule, **({"steps": 100, "warmup": 10, "final_lr": 0.0} | kwargs))
            for s in range(100)
        ]

    for schedule in ("linear", "cosine", "constant"):
        f = factors(schedule)
        assert f[0] == 0.1 and f[9] == f[10] == 1.0 and max(f) == 1.0
        assert all(a >= b for a, b in zip(f[10:], f[11:], strict=False))
    assert factors("constant")[-1] == 1.0
    assert factors("linear")[55] == pytest.approx(0.5) and factors("cosine")[55] == pytest.approx(0.5)
    assert 0 < factors("linear")[-1] < 0.02 and factors("linear", final_lr=0.1)[-1] == pytest.approx(0.11)


def test_schedule_keeps_the_ratios_of_groups(tiny):
    run = first_point(tiny("optimizer=muon"), width=64)
    model, p = build_run(run)
    groups = [g for o in optimizers_of(model, p, run) for g in o.param_groups]
    assert len({g["base_lr"] for g in groups}) > 2 and all(g["base_lr"] == g["lr"] for g in groups)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("chosen, probed", [("[1,4]", {0, 1, 3, 4, 12}), ("[1,20]", {0, 1, 3, 12}), ("[]", {0})])
def test_a_quarter_of_the_run_and_its_end_are_probed_besides_the_chosen_steps(chosen, probed, tiny, corpus, tmp_path):
    folder, _ = run_point(first_point(tiny(f"probe.steps={chosen}")), tmp_path, corpus)
    assert {row["step"] for row in read_rows(folder.path / "norms.jsonl")} == probed


def test_metrics_have_the_lr_of_the_schedule_and_the_norm_of_the_whole_gradient(tiny, corpus, tmp_path):
    """The lr of every step; at the first and every tenth the root of the tensors' squared norms, before it is clipped."""
    norms = {}
    for clip in ("null", "0.1"):
        run = first_point(tiny("probe.steps=[1,10]", "train.schedule=cosine", f"train.clip={clip}"))
        folder, _ = run_point(run, tmp_path, corpus)
        rows, tensors = (list(read_rows(folder.path / f"{name}.jsonl")) for name in ("metrics", "norms"))
        tensors = [row for row in tensors if "grad_norm" in row]
        factors = [schedule_factor(s, steps=12, warmup=2, schedule="cosine", final_lr=0.0) for s in range(12)]
        assert [row["lr"] for row in rows] == [2**-6 * x for x in factors]
        assert all(row["lr"] == rows[row["step"] - 1]["lr"] for row in tensors)  # at the base AdamW's is the lr that is tuned
        norms[clip] = {row["step"]: row["grad_norm"] for row in rows if "grad_norm" in row}
        used = {step: math.hypot(*(row["grad_norm"] for row in tensors if row["step"] == step)) for step in (1, 10)}
        assert used == pytest.approx(norms[clip] if clip == "null" else {1: 0.1, 10: 0.1}, rel=1e-5)
    assert norms["0.1"][1] == norms["null"][1] > 0.2 and norms["0.1"].keys() == {1, 10}


def test_speed_and_memory_have_a_file_of_their_own_that_nothing_rests_on(tiny, corpus, tmp_path):
    run = first_point(tiny("train.eval_every=5"))
    told: list = []
    folder, _ = run_point(run, tmp_path / "whole", corpus, on_rows=told.extend)
    timing = list(read_rows(folder.path / "timing.jsonl"))
    assert [row["step"] for row in timing] == [4, 8, 12]
    assert all(row["tokens_per_second"] > 0 and row["memory"] > 1e6 and "mfu" not in row for row in timing)
    assert told == read_metrics(folder) and [row["step"] for row in told] == list(range(1, 13))
    assert {"loss", "lr", "grad_norm", "rms/token", "update_norm/token.weight"} <= told[0].keys()
    assert told[3].keys() >= {"tokens_per_second", "memory"} and "val_loss" in told[4]
    broken = RunFolder(tmp_path / "broken", run.run_id)
    broken.write_config(run.to_json())
    (broken.path / "timing.jsonl").write_text("damaged\n{}\n")
    (tmp_path / "no" / run.run_id / "timing.jsonl").mkdir(parents=True)  # it cannot even be written
    for runs in ("broken", "no"):
        assert contents(run_point(run, tmp_path / runs, corpus)[0]) == contents(folder)
    assert [row["step"] for row in read_rows(broken.path / "timing.jsonl")] == [4, 8, 12]


def test_flops_are_those_of_the_formula(tiny):
    """6·N + 12·depth·context·width: with a readout of 256 × 64 and blocks of 12·64², two deep."""
    model, _ = build_run(first_point(tiny(), width=64))
    assert flops_per_token(model, depth=2, width=64, context=16) == 6 * (256 * 64 + 2 * 12 * 64**2) + 12 * 2 * 16 * 64
    assert peak_flops(torch.device("cpu"), "bfloat16") is None


def test_independent_weight_decay_shrinks_by_lambda_whatever_the_lr(tiny):
    def shrink(log2_lr, mode):
        overrides = ["optimizer.weight_decay.hidden=0.1", f"train.weight_decay={mode}", "rule=[spectral]"]
        run = first_point(tiny(*overrides), width=64, log2_lr=log2_lr)
        model, p = build_run(run)
        groups = [g for o in optimizers_of(model, p, run) for g in o.param_groups]
        return next(g["lr"] * g["weight_decay"] for g in groups if "blocks.0.mlp.up.weight" in g["names"])

    assert shrink(-6, "independent") == pytest.approx(shrink(-3, "independent")) == pytest.approx(0.1)
    assert shrink(-3, "coupled") == pytest.approx(8 * shrink(-6, "coupled")) == pytest.approx(2**-3 * 0.1)


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny, corpus, tmp_path):
    losses = []
    for k in (1, 2, 4):
        _, result = run_point(first_point(tiny(f"train.accumulate={k}")), tmp_path, corpus)
        losses.append(result["train_loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_labels_are_drawn_from_the_softmax():
    """The gradient of a mean loss with respect to its logits is (softmax − one-hot)/N: it tells the labels."""
    n, p = 40_000, torch.tensor([0.5, 0.2, 0.0, 0.25, 0.05])
    logits = p.log().clamp_min(-1e4).repeat(1, n, 1).requires_grad_()
    draws = data.label_draws(seed=3, step=7, batch_size=1, context=n)
    sampled_label_loss(logits, torch.from_numpy(draws)).backward()
    labels = (p - n * logits.grad[0]).argmax(-1)
    counts = torch.bincount(labels, minlength=5) / n
    assert (counts - p).abs().max() < 0.01 and counts[2] == 0
    other = data.label_draws(seed=3, step=8, batch_size=1, context=n)
    words = np.random.Philox(key=np.array([3, 7], np.uint64)).random_raw(n) / 2**64  # those that choose the batch
    for control in (other, words):
        assert abs(np.corrcoef(draws.ravel(), control.ravel())[0, 1]) < 0.02
    halves = [data.label_draws(seed=3, step=7, batch_size=4, context=8, microbatch=i, microbatches=2) for i in (0, 1)]
    assert np.array_equal(np.concatenate(halves), data.label_draws(seed=3, step=7, batch_size=4, context=8))


def test_an_optimizer_gets_the_gradient_on_sampled_labels_when_it_asks(tiny, corpus, tmp_path, monkeypatch):
    """Every k steps, over the tokens of the whole batch, however it is cut; and the step itself does not notice."""
    seen: dict[int, list] = {}

    def spy(self, tokens):
        grads = [p.grad.clone() for g in self.param_groups for p in g["params"]]
        seen[key].append((tokens, torch.cat([g.flatten() for g in grads])))
        real(self, tokens)

    real = Sophia.update_hessian
    monkeypatch.setattr(Sophia, "update_hessian", spy)
    args = "optimizer.algorithms.sophia.args"
    for key in (1, 4):
        seen[key] = []
        config = tiny("optimizer=sophia", f"{args}.hessian_interval=5", f"train.accumulate={key}", "train.clip=1e-3")
        run_point(first_point(config), tmp_path, corpus)
        assert [tokens for tokens, _ in seen[key]] == [64, 64, 64]  # before steps 1, 6 and 11 of 12
    torch.testing.assert_close(seen[1][0][1], seen[4][0][1], rtol=1e-4, atol=1e-7)
    assert seen[1][0][1].norm() > 0.1  # not the batch's own gradient, which is clipped to 1e-3
    metrics = []
    for k in (1, 5):  # γ·h below the floor: when h is updated cannot matter, unless something else leaks
        seen[key] = []
        config = tiny("optimizer=sophia", f"{args}.hessian_interval={k}", f"{args}.gamma=0")
        metrics.append((run_point(first_point(config), tmp_path, corpus)[0].path / "metrics.jsonl").read_bytes())
    assert metrics[0] == metrics[1]


def test_compiled_and_bfloat16_stay_near_float32(tiny, corpus, tmp_path):
    plain = run_point(first_point(tiny()), tmp_path, corpus)[1]["train_loss"]
    bf16 = run_point(first_point(tiny("train.precision=bfloat16")), tmp_path, corpus)[1]["train_loss"]
    assert bf16 != plain and bf16 == pytest.approx(plain, rel=0.01)


def test_claims_exclude_each_other_and_follow_the_dead(tmp_path):
    first, second = RunFolder(tmp_path, "r"), RunFolder(tmp_path, "r")
    first.claim()
    with pytest.raises(ClaimedError, match=f"claimed by process {os.getpid()}"):
        second.claim()
    bury(first)
    second.claim()
    with pytest.raises(ClaimedError, match="was taken over"):
        first.finish(RESULT)
    assert first.result() is None
    second.finish(RESULT)
    assert first.result() == RESULT


def test_of_many_that_claim_one_wins(tmp_path):
    """Sixteen threads race for each of thirty runs, a dead owner among them."""
    from concurrent.futures import ThreadPoolExecutor

    def attempt(identity):
        folder = RunFolder(tmp_path, identity)
        try:
            folder.claim()
            return folder
        except ClaimedError:
            return None

    with ThreadPoolExecutor(16) as pool:
        for i in range(30):
            if i % 2:
                RunFolder(tmp_path, str(i)).claim()
                bury(RunFolder(tmp_path, str(i)))
            winners = [f for f in pool.map(attempt, [str(i)] * 16) if f]
            assert len(winners) == 1 and winners[0].owner()["nonce"] == winners[0].nonce
            assert not list((tmp_path / str(i) / "attempts").glob("new.*"))


def test_config_edited_by_hand_is_refused(tiny, corpus, tmp_path):
    point = first_point(tiny())
    folder, _ = run_point(point, tmp_path, corpus)
    before = contents(folder)
    path = folder.path / "config.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(RecordError, match="was edited after the run began"):
        folder.write_config(point.to_json())
    path.write_text("{")
    with pytest.raises(RecordError, match="not JSON; restore it"):
        folder.check_config()
    assert contents(folder) == before


def test_readers_skip_a_cut_last_line_and_name_a_broken_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RecordError, match="line 2: no row of JSON"):
        list(read_rows(path))


def test_a_full_disk_keeps_the_old_file_and_fails_the_run(tiny, corpus, tmp_path, monkeypatch):
    """ENOSPC at any write: the old content stays whole, no temporary file is left, and the run goes on once there is room."""
    write_atomic(tmp_path / "f", b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    point = first_point(tiny())
    whole, _ = run_point(point, tmp_path / "whole", corpus)
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["f"]
    real, calls = os.fsync, iter(range(1000))
    for room in (3, 5, 6):
        runs = tmp_path / f"runs{room}"
        with monkeypatch.context() as m:
            calls = iter(range(1000))
            m.setattr(os, "fsync", lambda fd, calls=calls, room=room: full(fd) if next(calls) >= room else real(fd))
            with pytest.raises(OSError, match="No space left"):
                run_point(point, runs, corpus)
        folder = RunFolder(runs, point.run_id)
        assert folder.result() is None and not [p for p in folder.path.rglob(".*")]
        bury(folder)
        assert contents(run_point(point, runs, corpus)[0]) == contents(whole)


def test_probe_measures_what_it_says(tiny, corpus, tmp_path):
    config = tiny("probe.steps=[1]", "train.steps=1", "train.warmup=0", "train.schedule=constant",
                  "optimizer.weight_decay.hidden=0", "model.init_std.embedding=1")  # fmt: skip
    # tables at 0.5 make one update here whose norm the power iteration leaves 10 % short: see spectral_norm
    point = first_point(config, width=64, seed=2)
    folder, _ = run_point(point, tmp_path, corpus)
    rows = {(r["step"], r["name"], r["what"]): r for r in read_rows(folder.path / "norms.jsonl")}
    model, p = build_run(point)
    up = model.get_parameter("blocks.0.mlp.up.weight")
    start = rows[0, "blocks.0.mlp.up.weight", "tensor"]
    assert start["weight_norm"] == pytest.approx(float(torch.linalg.matrix_norm(up.detach(), 2)), rel=0.02)
    before = {n: q.detach().clone() for n, q in model.named_parameters()}

    x, y = (torch.from_numpy(a) for a in data.batch(corpus.train, seed=2, step=0, batch_size=4, context=16))
    model(x, y).backward()
    for o in optimizers_of(model, p, point):
        o.step()
    for name, q in model.named_parameters():
        row, update = rows[1, name, "tensor"], (q - before[name]).detach()
        update = update if update.ndim == 2 else update[:, None]
        norm = float(torch.linalg.matrix_norm(update, 2))
        assert row["update_norm"] == pytest.approx(norm, rel=0.02), name
        assert row["update_stable_rank"] == pytest.approx(float(update.square().sum()) / norm**2, rel=0.05)
        assert row["grad_norm"] == pytest.approx(float(q.grad.norm()), rel=1e-4)
    assert rows[1, "readout.weight", "tensor"]["multiplier"] == 0.5
    first = rows[0, "logits", "feature"]
    assert first["delta_rms"] == 0 and first["rms"] > 0 and rows[1, "logits", "feature"]["delta_rms"] > 0
    xp, _ = data.probe_batch(corpus.val, count=2, context=16)
    rms = float(model(torch.from_numpy(xp)).detach().square().mean().sqrt())
    assert rows[1, "logits", "feature"]["rms"] == pytest.approx(rms, rel=1e-5)


def test_probes_change_nothing_of_the_run(tiny, corpus, tmp_path):
    with_probes = run_point(first_point(tiny("model.dropout=0.2")), tmp_path, corpus)[0]
    without = run_point(first_point(tiny("model.dropout=0.2", "probe.steps=[]")), tmp_path, corpus)[0]
    assert (with_probes.path / "metrics.jsonl").read_bytes() == (without.path / "metrics.jsonl").read_bytes()


def test_result_records_tokens_epochs_and_corpus(tiny, corpus, tmp_path):
    result = run_point(first_point(tiny()), tmp_path, corpus)[1]
    assert result["tokens"] == 12 * 4 * 16 and result["epochs"] == pytest.approx(result["tokens"] / len(corpus.train))
    assert result["corpus"]["sha256"] == corpus.sha256 and result["corpus"]["train_tokens"] == len(corpus.train)
    assert result["parameters"] == 2 * 256 * 32 + 16 * 32 + 2 * (12 * 32**2 + 2 * 32) + 32
    assert np.isfinite(result["val_loss"])


def test_auto_depends_on_the_device_and_is_kept_by_a_resumed_run(tiny, corpus, tmp_path, monkeypatch):
    from spectral_mup.training import run as module
    from spectral_mup.training.precision import resolve_auto

    t = tiny("train.precision=auto", "train.compile=auto", "train.steps=100").train
    none, avx, amx = frozenset(), frozenset({"avx512_bf16"}), frozenset({"avx512_bf16", "amx_bf16"})
    found = {f: [resolve_auto(t, w, 1.0, "cpu", f)["precision"] for w in (64, 128, 256)] for f in (none, avx, amx)}
    assert found == {
        none: ["float32"] * 3,
        avx: ["float32", "float32", "bfloat16"],
        amx: ["float32", "bfloat16", "bfloat16"],
    }
    assert resolve_auto(t, 64, 1.0, "cuda", none)["precision"] == "bfloat16"
    definite = tiny("train.precision=float32", "train.compile=auto").train
    assert resolve_auto(definite, 256, 1.0, "cpu", amx) == {"precision": "float32", "compile": "false", "graph": "false"}
    assert resolve_auto(definite, 64, 1.0, "cuda", none, capturable=True)["graph"] == "true"

    point = first_point(tiny("train.precision=auto", "train.compile=auto"))
    runs, stops, as_before = tmp_path / "runs", iter(range(100)), {"compile": "false", "graph": "false"}
    monkeypatch.setattr(module, "resolve_auto", lambda *_, **__: dict(as_before, precision="bfloat16"))
    run_point(point, runs, corpus, should_stop=lambda: next(stops) >= 5)
    monkeypatch.setattr(module, "resolve_auto", lambda *_, **__: dict(as_before, precision="float32"))
    bury(RunFolder(runs, point.run_id))
    assert run_point(point, runs, corpus)[1]["precision"] == "bfloat16"
    assert run_point(point, tmp_path / "other", corpus)[1]["precision"] == "float32"
