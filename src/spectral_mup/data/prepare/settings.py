"""The settings of action=prepare: types, choices and bounds. Defaults live in conf/."""

from typing import Annotated, Literal

from pydantic import Field

from spectral_mup.util.fields import AtLeastOne, Int, Part


class PrepareConfig(Part):
    """What conf/config.yaml says under `prepare`."""

    input: str | None
    out: str | None
    tokenizer: Literal["bytes", "gpt2", "bpe", "sentencepiece"]
    model: str | None
    vocab_size: Annotated[Int, Field(ge=257)]  # 256 bytes and the end of text
    field: str | None
    shard_tokens: AtLeastOne

    @property
    def trains_bpe(self) -> bool:
        return self.tokenizer == "bpe" and self.model is None
