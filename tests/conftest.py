"""One thread for every test: tiny matrices gain nothing from more, and results do not hang on the machine."""

import torch

torch.set_num_threads(1)
