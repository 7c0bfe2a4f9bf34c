"""What every room stands on: whole files, locks, signals, streams, limits, strict JSON and TOML."""
