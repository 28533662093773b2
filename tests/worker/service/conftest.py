"""One thread: these tensors are small, and threads that wait for each other on busy cores take far longer."""

import torch

torch.set_num_threads(1)
