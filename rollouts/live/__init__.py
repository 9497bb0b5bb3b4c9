"""`vw2-live`: a local page on which a policy is given instructions and watched while it acts.

`session` and `control` are the state machine (no page, thread or simulator in them), `worker` runs it ten times a
second, `world` is the simulator, `page` shows what the worker publishes and sends what is pressed.
"""
