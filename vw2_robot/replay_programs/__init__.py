"""The subcommands of `vw2-replay`: serve a Reverb replay, fill it with windows, check what arrives."""
