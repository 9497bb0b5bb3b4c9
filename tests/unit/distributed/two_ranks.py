"""One of two ranks of a test: trains a tiny module in every way, and prints what it found."""

import json
import sys
import threading

import torch
from torch import nn

from vw2_robot.distributed.batch_share import BatchShare, StatisticsGroups
from vw2_robot.distributed.ranks import any_rank, check_same, from_main, gather, global_sum, joined_ranks, on_main, rank
from vw2_robot.distributed.sharding import LossParts, Parallel, full, gathered
from vw2_robot.errors import InputError
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.schedule import OptimConfig

OPTIM = OptimConfig(warmup_steps=1, lr=0.01)
BATCH = 8


def batch():
    return torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def train(sharding, micro_batches):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    parallel = Parallel({"net": net}, sharding=sharding, blocks=[net[0]])
    optimizer = build_optimizer(net.parameters(), OPTIM)
    share = BatchShare.of(BATCH, micro_batches=micro_batches)
    groups = StatisticsGroups(2)

    def loss_of(x):
        # Standardized over groups of two samples, which lie on two ranks where a part holds one sample of each.
        y = net(x)
        y = y - groups.spread(groups.sums(y) / 2, len(y))
        return LossParts(y.pow(4).sum() / BATCH, {"mean": y.detach().abs().sum() / BATCH})

    found = []
    for step in range(3):
        rows = torch.from_numpy(share.rows)
        loss, metrics, _ = parallel.backward(loss_of, [(batch()[rows[part]],) for part in share.slices()])
        norm = optimizer_step(loss, optimizer, step=step, config=OPTIM, total_steps=10)
        found.append([float(loss), float(metrics["mean"]), float(norm)])
    weights = [full(value.detach()).flatten().tolist() for value in net.parameters()]
    found.append([number for value in weights for number in value])
    # Code that reads the weights themselves, past the forward pass of their block.
    product = parallel.run(lambda: read_weights(net))
    found.append([float(product)])
    return found


def read_weights(net):
    with gathered(net):
        return net[0].weight.sum() + net[2].weight.sum()


def agree():
    own = torch.tensor([float(rank() + 1)], requires_grad=True)
    (global_sum(own) * (rank() + 1)).sum().backward()
    with_error = ""
    try:
        check_same("the data", {"digest": rank()}, advice="give one frame cache")
    except InputError as error:
        with_error = str(error)
    return {
        "sum": float(global_sum(torch.tensor(rank() + 1.0))),
        "gradient": own.grad.tolist(),
        "gather": gather(rank()),
        "any": [any_rank(rank() == 1), any_rank(False)],
        "main": [from_main(rank()), on_main(lambda: "made by 0" if rank() == 0 else "")],
        "differ": with_error,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    # A single process, to compare with, when there are no other ranks.
    with joined_ranks():
        ways = {f"{s}-{m}": train(s, m) for s in ("none", "ddp", "fsdp") for m in (1, 2, 4)}
        result = {"trained": ways, "agreed": agree()}
    # A thread that is still in a call of the store aborts an ending interpreter.
    result["threads"] = [thread.name for thread in threading.enumerate() if thread.name == "ranks"]
    sys.stderr.write("\nfound " + json.dumps(result) + "\n")
