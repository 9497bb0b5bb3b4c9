"""`python -m vw2_robot.replay_programs serve|fill|check ...`, the same as the console script `vw2-replay`."""

from __future__ import annotations

from vw2_robot.command_line.entry_points import replay

if __name__ == "__main__":
    replay()
