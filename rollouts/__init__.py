"""Closed-loop evaluation of a policy in a benchmark: rows, videos and a report.

    vw2-rollout policy=DIR|random|demonstrator env=calvin num_sequences=1000 run_dir=runs/eval
    vw2-report  runs=[runs/eval,runs/first] out=runs/report

`evaluate` is the protocol, `workers` runs chains in several processes, `results` computes the summary, `video` and
`report` show what happened. Policy and simulator are known here through `vw2_robot.contracts` alone.
"""
