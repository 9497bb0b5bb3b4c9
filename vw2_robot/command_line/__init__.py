"""The command line of all programs: configuration, overrides, help, exit codes."""
