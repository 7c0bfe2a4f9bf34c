"""What a process does once and all that are forked from it need not do again: imports, and a first graph."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

import mafl_cli.case.pipeline  # noqa: F401

# A pool of threads does not survive a fork.
torch.set_num_threads(1)
make_fx(torch.nn.Conv2d(1, 1, 3))(torch.zeros(1, 1, 4, 4))
