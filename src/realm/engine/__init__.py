"""Scheduler, runner, sampling, speculation: `Engine.step()` is synchronous and does no I/O."""
