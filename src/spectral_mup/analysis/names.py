"""What figures and tables call rules, optimizers, model families and axes."""

from collections.abc import Mapping

PRINTED = {  # as papers print them; families come in this order
    "nanogpt": "NanoGPT", "llama2": "Llama2",
    "adamw": "AdamW", "adopt": "ADOPT", "lamb": "LAMB", "lion": "Lion", "muon": "Muon", "sgd": "SGD", "shampoo": "Shampoo",
    "soap": "SOAP", "sophia": "Sophia",
    "standard_fixed": "standard, fixed init", "spectral_depth_0": "spectral, α = 0", "spectral_depth_half": "spectral, α = ½",
    "spectral_readout": "spectral, readout in lr", "adamw_decay_0": "spectral, fixed λ",
    "lamb_hidden_0": "spectral, fixed LAMB lr",
    "tensor_programs_v": "Tensor Programs V", "tensor_programs_v_table8": "Tensor Programs V, table 8",
    "completep": "CompleteP", "paper_2602_20937": "arXiv:2602.20937", "qiu": "Qiu et al.", "zheng": "Zheng et al.",
    "zheng_k1": "Zheng et al., k = 1", "mlp": "MLP",
}  # fmt: skip


def printed(name: str, own: Mapping[str, str] | None = None) -> str:
    """Return a name for people: the user's own, else as papers print it, else with spaces; of 'muon spectral' word by word."""
    known = PRINTED | dict(own or {})
    return known[name] if name in known else " ".join(known.get(word, word.replace("_", " ")) for word in name.split())
