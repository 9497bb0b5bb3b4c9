"""The simulator: CALVIN's four table-top scenes in PyBullet, its task oracle and its evaluation chains.

Importing this package registers the Gymnasium id `vw2_robot/Calvin-v0` and nothing else; PyBullet is loaded when an
environment is made. The oracle and the chains work without PyBullet. No file here depends on a model.

    env = gymnasium.make("vw2_robot.envs:vw2_robot/Calvin-v0", task="open_drawer", max_episode_steps=360)

makes an environment for one task (calvin.py). The benchmark's chains of five tasks are in benchmark.py, videos of
episodes in video_recorder.py.
"""

from vw2_robot.errors import require

for _module in ("gymnasium", "omegaconf"):  # the files of this folder import them at module level
    require(_module, extra="calvin")

from gymnasium.envs.registration import register, registry  # noqa: E402

CALVIN_ID = "vw2_robot/Calvin-v0"

if CALVIN_ID not in registry:
    register(id=CALVIN_ID, entry_point="vw2_robot.envs.calvin:CalvinEnv")
