"""Files that survive crashes: atomic writes, locks, arrays with bounds."""
