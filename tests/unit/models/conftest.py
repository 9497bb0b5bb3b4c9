import torch

torch.set_num_threads(1)  # the models are tiny; two test processes share two cores
