"""Models of one's own in a sweep: the two families with their positions exchanged.

NanoGPT's block with rotary positions in place of a learned table, Llama2's with a learned table. They show why AdamW's best
learning rate falls with the depth of NanoGPT and not of Llama2: it goes with the positions, not with the block. In this
folder, and with `analyze` in place of `launch` afterwards:

    spectral-mup launch sweep=mini/depth model=rotary_nanogpt 'rule=[spectral]' sweep.name=rotary_nanogpt_depth
    spectral-mup launch sweep=mini/llama2_depth model=learned_llama2 'rule=[spectral]' sweep.name=learned_llama2_depth
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_mup.models.configs import Llama2Config, NanoGPTConfig
from spectral_mup.models.layers import rotation
from spectral_mup.models.llama2 import Llama2
from spectral_mup.models.nanogpt import NanoGPT

ROPE_BASE = 10_000.0


class RotaryNanoGPT(NanoGPT):
    """Queries and keys are turned by their position; there is no table of positions."""

    def __init__(self, config: NanoGPTConfig, vocab_size: int, width: int, depth: int) -> None:
        super().__init__(config, vocab_size, width, depth)
        del self.position
        self.head_size = width // config.head_count(width)

    def features(self, x_BT: Tensor) -> Tensor:
        h_BTD = F.dropout(self.multipliers.embedding * self.token(x_BT), self.dropout, self.training)
        rotation_TE = rotation(x_BT.size(1), self.head_size, ROPE_BASE, x_BT.device)
        for block in self.blocks:
            h_BTD = block(h_BTD, rotation_TE)
        return self.norm(h_BTD)


class LearnedLlama2(Llama2):
    """A learned table of positions is added to the tokens; queries and keys are not turned."""

    def __init__(self, config: Llama2Config, vocab_size: int, width: int, depth: int) -> None:
        super().__init__(config, vocab_size, width, depth)
        self.position = nn.Embedding(config.context, width)

    def features(self, x_BT: Tensor) -> Tensor:
        positions = torch.arange(x_BT.size(1), device=x_BT.device)
        h_BTD = self.multipliers.embedding * (self.token(x_BT) + self.position(positions))
        h_BTD = F.dropout(h_BTD, self.dropout, self.training)
        for block in self.blocks:
            h_BTD = block(h_BTD)
        return self.norm(h_BTD)


class RotaryNanoGPTConfig(NanoGPTConfig):
    """Keys of NanoGPT."""

    model_class: ClassVar[str] = "exchanged.RotaryNanoGPT"


class LearnedLlama2Config(Llama2Config):
    """Keys of Llama2."""

    model_class: ClassVar[str] = "exchanged.LearnedLlama2"
