"""The run directory: parts, manifests, columns, files on local and remote storage."""
