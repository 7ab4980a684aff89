"""A language model as a user's own module would define it, as text for a file in the working directory."""

LANGUAGE_MODEL = """
import torch
from torch import nn


class LM(nn.Module):
    def __init__(self, width, vocab_size):
        super().__init__()
        self.table, self.hidden = nn.Embedding(vocab_size, width), nn.Linear(width, width)
        self.readout = nn.Linear(width, vocab_size, bias=False)

    def forward(self, ids):
        return self.readout(torch.relu(self.hidden(self.table(ids))))
"""
