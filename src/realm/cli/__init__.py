"""The `realm` command."""
