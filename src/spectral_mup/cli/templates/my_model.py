"""A model family of my own: a transformer whose attention and MLP act side by side (as in GPT-J), or one after the other."""

from typing import ClassVar

from torch import nn

from spectral_mup.models.configs import FamilyConfig
from spectral_mup.models.layers import CausalSelfAttention, GeluMLP, LanguageModel
from spectral_mup.theory.rules import Multipliers


class MyConfig(FamilyConfig):
    """The keys of conf/model/my_model.yaml: those that every family has, and one of its own."""

    model_class: ClassVar[str] = "my_model.MyModel"

    parallel: bool


class MyModel(LanguageModel):
    """Token ids (B, T) to logits (B, T, V). B batch, T time, D width, V vocabulary.

    A run's rule initialises the weights and calls set_multipliers, which fills in multipliers, branch and attention's scale.
    """

    def __init__(self, config: MyConfig, vocab_size: int, width: int, depth: int) -> None:
        super().__init__()
        self.context, self.multipliers = config.context, Multipliers(attention=config.head_dim(width) ** -0.5)
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(config.context, width)
        self.blocks = nn.ModuleList(Block(config, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Linear(width, vocab_size, bias=False)

    def features(self, x_BT):
        """Return the final hidden state (B, T, D), normalised."""
        h_BTD = self.multipliers.embedding * (self.token(x_BT) + self.position.weight[: x_BT.size(1)])
        for block in self.blocks:
            h_BTD = block(h_BTD)
        return self.norm(h_BTD)


class Block(nn.Module):
    """x + a·(attention(h) + mlp(h)) with h = LN(x) and the branch multiplier a."""

    def __init__(self, config: MyConfig, width: int) -> None:
        super().__init__()
        heads, self.branch, self.parallel = config.head_count(width), 1.0, config.parallel
        self.norm = nn.LayerNorm(width)
        self.attention = CausalSelfAttention(width, heads, heads, config.head_dim(width), False, config.dropout)
        self.mlp = GeluMLP(width, config.mlp_width(width), False, config.dropout)

    def forward(self, x_BTD):
        h_BTD = self.norm(x_BTD)
        if self.parallel:
            return x_BTD + self.branch * (self.attention(h_BTD) + self.mlp(h_BTD))
        x_BTD = x_BTD + self.branch * self.attention(h_BTD)
        return x_BTD + self.branch * self.mlp(self.norm(x_BTD))
