"""The settings of action=prepare: types, choices and bounds. Defaults live in conf/."""

from typing import Literal

from pydantic import BaseModel, Field


class PrepareConfig(BaseModel, frozen=True, extra="forbid"):
    input: str | None
    out: str | None
    tokenizer: Literal["bytes", "gpt2", "bpe", "sentencepiece"]
    model: str | None
    vocab_size: int = Field(ge=257)  # 256 bytes and the end of text
    field: str | None
    shard_tokens: int = Field(ge=1)
