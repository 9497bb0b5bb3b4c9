"""Program `vw2-live`: a local page on which a policy is given instructions and watched while it acts.

    vw2-live                                            # builtin:calvin-tiny, http://127.0.0.1:8080
    vw2-live policy=runs/first/finetune env.scene=A
    vw2-live data.path=runs/first/rollout               # chains of a rollout, or a recorded data set

docs/live.md describes the page.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from vw2_robot.command_line import entry_points
from vw2_robot.errors import InputError

from ..config import RolloutConfig, is_served, open_benchmark, open_policy
from .config import LiveConfig
from .control import ChosenWorld, Control, OpenedPolicy
from .expectation import Expectation
from .library import RolloutRows, open_library
from .page import Page
from .saving import save_episode
from .session import LiveEpisode
from .worker import LiveWorker


class LiveOpener:
    """A `control.Opener`: simulator, policies, recordings and files."""

    def __init__(self, config: LiveConfig) -> None:
        self._config = config
        self._env = config.env
        path = config.data.path
        self.library = None if path is None else open_library(Path(path), config.data.split, device=config.device)
        if isinstance(self.library, RolloutRows):  # its chains belong to its simulator
            self._env = self.library.env

    def world(self, scene: str) -> ChosenWorld:
        """Return a new world.

        Raises:
            InputError: no such scene, or another simulator than ours.
        """
        benchmark = open_benchmark(self._env | {"scene": scene})
        make = getattr(benchmark, "live_world", None)
        if make is None:
            raise InputError(f"env={self._env['_target_']} cannot be shown (no method live_world); try env=calvin")
        return cast(ChosenWorld, make())

    def policy(self, name: str, world: ChosenWorld) -> OpenedPolicy:
        """Return a policy of that name, for this world.

        Raises:
            InputError: there is no such policy.
        """
        config = self._config
        chosen = RolloutConfig(
            policy=name.strip(), env=self._env, run_dir="", device=config.device, threads=config.threads
        )
        policy = open_policy(chosen, world.benchmark)
        if not is_served(chosen):
            return OpenedPolicy(policy, note="it has no latent tokens")
        if policy.metadata["acting"] == "none":
            return OpenedPolicy(policy, note="it acts without latent tokens (acting=none)")
        try:
            decoder = Expectation(chosen.policy, hz=world.control_hz, device=config.device)
        except InputError as error:  # it acts all the same
            return OpenedPolicy(policy, note=f"its tokens cannot be decoded: {error}")
        return OpenedPolicy(policy, decoder)

    def save(self, episode: LiveEpisode, world: ChosenWorld) -> Sequence[Path]:
        """Store an episode; return what was written."""
        return save_episode(episode, world, Path(self._config.out))


def live(config: LiveConfig) -> None:
    """Serve the page until SIGTERM or Ctrl-C.

    Raises:
        InputError: no such policy, scene or recording, or an address that is in use.
        MissingExtraError: viser is not installed.
    """
    opener = LiveOpener(config)
    seed, scene = config.seed, str(config.env.get("scene", "D"))
    page = Page(host=config.host, port=config.port, policy=config.policy, seed=seed, opener=opener)
    worker = LiveWorker(lambda: Control(opener, policy=config.policy, scene=scene, seed=seed), page.show)
    page.attach(worker)
    worker.start()
    print(f"live: http://{config.host}:{page.port} (Ctrl-C ends it)", flush=True)
    try:
        while worker.is_alive():
            time.sleep(0.2)
    except KeyboardInterrupt:  # SIGTERM as well
        print("live: stopped", flush=True)
        worker.stop()
    finally:
        page.close()
    if worker.error is not None:
        raise worker.error


if __name__ == "__main__":
    entry_points.live.main()
