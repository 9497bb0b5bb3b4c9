"""Closed-loop evaluation: a policy and a benchmark go in, rows, videos and a report come out.

    vw2-rollout policy=DIR|random|demonstrator env=calvin num_sequences=1000 run_dir=runs/eval
    vw2-report  runs=[runs/eval,runs/first] out=runs/report

`evaluate` holds the protocol, `workers` spreads chains over processes, `results` does the arithmetic, `video` and
`report` show what happened. A policy and a simulator meet here through `vw2_robot.contracts` alone.
"""
