"""Your own models in a sweep: the two families with their positions exchanged.

NanoGPT's block with rotary positions in place of a learned table, Llama2's with a learned table. They show why AdamW's best
learning rate falls with the depth of NanoGPT and not of Llama2: it goes with the positions, not with the block. In this
folder, and with `analyze` in place of `launch` afterwards:

    spectral-mup launch sweep=mini/depth model=rotary_nanogpt 'rule=[spectral]' sweep.name=rotary_nanogpt_depth
    spectral-mup launch sweep=mini/llama2_depth model=learned_llama2 'rule=[spectral]' sweep.name=learned_llama2_depth
"""

from typing import ClassVar

from torch import nn

from spectral_mup.models.configs import Llama2Config, NanoGPTConfig
from spectral_mup.models.llama2 import Llama2
from spectral_mup.models.nanogpt import NanoGPT


class RotaryNanoGPT(NanoGPT):
    """Queries and keys are turned by their position, as in Llama2; no table of positions exists."""

    features = Llama2.features  # type: ignore[assignment]

    def __init__(self, config: NanoGPTConfig, vocab_size: int, width: int, depth: int) -> None:
        super().__init__(config, vocab_size, width, depth)
        del self.position
        self.head_size, self.rope_base = width // config.head_count(width), 10_000.0


class LearnedLlama2(Llama2):
    """A learned table of positions is added to the tokens, as NanoGPT's; queries and keys are not turned."""

    features = NanoGPT.features  # type: ignore[assignment]

    def __init__(self, config: Llama2Config, vocab_size: int, width: int, depth: int) -> None:
        super().__init__(config, vocab_size, width, depth)
        self.position = nn.Embedding(config.context, width)


class RotaryNanoGPTConfig(NanoGPTConfig):
    """Keys of NanoGPT."""

    model_class: ClassVar[str] = "exchanged.RotaryNanoGPT"


class LearnedLlama2Config(Llama2Config):
    """Keys of Llama2."""

    model_class: ClassVar[str] = "exchanged.LearnedLlama2"
