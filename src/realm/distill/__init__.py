"""Making small draft models for speculation: prune a target's layers, then distil on text the target itself writes."""
