"""What a user may write: sections, keys, defaults, and reading them from YAML."""
