"""The weights that a run ends with, kept with train.keep=last: weights.pt, or of transformers the folder model/."""

import io
import os
import shutil

import torch

from spectral_mup.runs.run_folder import MODEL, WEIGHTS, RunFolder
from spectral_mup.scaling.fold import folded
from spectral_mup.training.trainer import Trainer
from spectral_mup.util.files import write_atomic


def keep_weights(folder: RunFolder, trainer: Trainer) -> None:
    """Write them as whole tensors, however they are sharded, from the main process; every process calls it.

    weights.pt is the state_dict as trained. What from_pretrained loads from model/ computes what was trained, the multipliers
    of the forward pass being part of its weights.
    """
    state = trainer.weights()
    if not trainer.processes.is_main:
        return
    folder.check_claim()
    model = trainer.model
    if not hasattr(model, "save_pretrained"):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(folder.path / WEIGHTS, buffer.getvalue())
        return
    for left in folder.path.glob(f".{MODEL}.*"):  # by an attempt that was killed
        shutil.rmtree(left)
    new, prepared = folded(model, state), folder.path / f".{MODEL}.{os.getpid()}"
    tied = model.config.tie_word_embeddings  # pyright: ignore
    same = all(new[name] is state[name] for name in state)
    model.config.tie_word_embeddings = tied and same  # pyright: ignore
    try:
        model.save_pretrained(prepared, state_dict=new)  # pyright: ignore
    finally:
        model.config.tie_word_embeddings = tied  # pyright: ignore
    shutil.rmtree(folder.path / MODEL, ignore_errors=True)  # of an attempt that ended before its result
    os.replace(prepared, folder.path / MODEL)
