"""A Llama of transformers at several widths, trained with Muon and AdamW at the lr of the smallest.

    python examples/huggingface.py --widths 64 128 256 --lr 0.02 --steps 40

Prints what each tensor of the largest trains with, the loss of every width, and the feature check beside its control.
The text is Python's help topics, as bytes.
"""

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from spectral_mup import check_features, data, explain, init_, make_optimizers, scale, set_multipliers_

HEAD, CONTEXT, BATCH = 16, 32, 8
CORPUS = data.load("pydoc", None, None)


def build(width: int) -> LlamaForCausalLM:
    """Two blocks, heads of one size, twice as many of queries as of keys and values."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def batch(seed: int, step: int) -> dict[str, torch.Tensor]:
    x, _ = data.batch(CORPUS.train, seed=seed, step=step, batch_size=BATCH, context=CONTEXT)
    tokens = torch.from_numpy(x)
    return {"input_ids": tokens, "labels": tokens}  # transformers shifts the labels itself


def train(width: int, base: LlamaForCausalLM, wider: LlamaForCausalLM, lr: float, steps: int) -> float:
    """Mean loss of the last ten steps."""
    model = build(width)
    scalings = scale(model, base, optimizer="muon", wider=wider)
    set_multipliers_(model, scalings)
    init_(model, scalings, seed=0)
    optimizers = make_optimizers(model, scalings, lr=lr, weight_decay=0.01)
    if model.config.hidden_size == wider.config.hidden_size:
        print(explain(scalings, lr=lr, weight_decay=0.01), end="\n\n")
    losses = []
    for step in range(steps):
        loss = model(**batch(0, step)).loss
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * (1 - step / steps)  # a schedule multiplies, it never overwrites
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return sum(losses[-10:]) / len(losses[-10:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256], help="multiples of 32, the first is the base")
    parser.add_argument(
        "--lr", type=float, default=0.02, help="of Muon at the base; AdamW's share is in conf/optimizer/muon.yaml"
    )
    parser.add_argument("--steps", type=int, default=40, help="of training; the feature check takes 10 of its own")
    options = parser.parse_args(argv)

    torch.manual_seed(0)
    torch.set_num_threads(1)  # models this small gain nothing from more, and lose much where another process is busy
    start = time.monotonic()
    base, wider = build(options.widths[0]), build(max(options.widths))
    for width in sorted(options.widths, reverse=True):
        print(f"width {width}: loss {train(width, base, wider, options.lr, options.steps):.3f}")
    verdict = check_features(build, options.widths, "muon", lr=options.lr, batch=batch)
    print(f"\n{verdict}\n{time.monotonic() - start:.0f} seconds")
    return verdict.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
