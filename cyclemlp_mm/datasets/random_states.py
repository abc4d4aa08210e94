"""Random states that follow from a place in the training, not from what ran before."""

import random

import numpy as np
import torch


def seed_all(*place: int) -> None:
    """Seed Python's, numpy's and PyTorch's generators of this process.

    Two places give independent streams, however near they are (numpy's ``SeedSequence`` mixes
    them), and a place gives the same stream in every process and after every restart.

    Args:
        *place (int): Non-negative numbers, such as (seed, kind, epoch, sample).
    """
    words = np.random.SeedSequence(place).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed((int(words[2]) << 31) ^ int(words[3]))
