"""A model family of my own: residual MLPs over a causal mean of the past. Shapes: B batch, T time, D width, H hidden."""

import torch
import torch.nn.functional as F
from spectral_mup.models.configs import FamilyConfig
from torch import nn

from spectral_mup.models.layers import LanguageModel


class MyConfig(FamilyConfig):
    """The keys of conf/model/my_model.yaml beyond those that every family has."""

    mlp_ratio: float = 2.0

    residual_blocks = ("blocks.",)  # their updates are divided among the depth

    def build(self, vocab_size, width, depth):
        return MyModel(vocab_size, self.context, width, depth, int(self.mlp_ratio * width))


class MyModel(LanguageModel):
    """Token ids (B, T) to logits (B, T, V). Weights and multipliers are set by the rule of a run."""

    def __init__(self, vocab_size, context, width, depth, hidden):
        super().__init__()
        self.context = context
        self.token = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, vocab_size, bias=False)

    def features(self, x_BT):
        """Final hidden state (B, T, D), normalised."""
        h_BTD = self.multipliers.embedding * self.token(x_BT)
        for block in self.blocks:
            h_BTD = h_BTD + self.multipliers.branch * block(h_BTD)
        return self.norm(h_BTD)


class Block(nn.Module):
    """mlp(h, mean of h so far) with h = LN(x): what is added to the residual stream."""

    def __init__(self, width, hidden):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.present = nn.Linear(width, hidden, bias=False)
        self.past = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD):
        h_BTD = self.norm(x_BTD)
        counts_T1 = torch.arange(1, x_BTD.size(1) + 1, device=x_BTD.device).unsqueeze(-1)
        mean_BTD = h_BTD.cumsum(1) / counts_T1
        return self.down(F.gelu(self.present(h_BTD) + self.past(mean_BTD)))
