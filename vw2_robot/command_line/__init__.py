"""What all programs share: configuration, overrides, help, exit codes."""
