"""Program `vw2-serve`: a fine-tuned policy for robots that speak openpi's websocket protocol.

    vw2-serve policy=runs/first/finetune

SIGTERM or Ctrl-C answers the requests in progress and ends with status 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from vw2_robot.command_line import entry_points
from vw2_robot.limits import Count

from .server import PolicyServer, ServerSettings


@dataclass(frozen=True, kw_only=True)
class ServeConfig(ServerSettings):
    """The root of `vw2-serve`."""

    policy: str
    """a checkpoint or fine-tuning run folder, builtin:NAME, or a Hub id "owner/name" """
    device: str = "auto"
    """auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:0, mps, ..."""
    threads: Count = 1
    """of the policy, on a CPU"""
    n_action_steps: Count | None = None
    """actions that a robot executes of each answer; null: as in training"""


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        InputError: no such policy, one that cannot act, or an address that is in use.
    """
    import torch

    from vw2_robot.agent import VW2Agent

    torch.set_num_threads(config.threads)
    agent = VW2Agent.from_pretrained(config.policy, device=config.device, n_action_steps=config.n_action_steps)
    try:
        with PolicyServer(agent, config) as server:
            print(f"serving {config.policy} on ws://{config.host}:{server.port}", flush=True)
            server.wait()
    except KeyboardInterrupt:  # SIGTERM as well; the `with` has answered what was in progress
        print("server: stopped", flush=True)


if __name__ == "__main__":
    entry_points.serve.main()
