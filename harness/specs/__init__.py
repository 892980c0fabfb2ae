"""YAML and overrides become one checked spec."""
