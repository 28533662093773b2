"""The decode loop: scheduler, cache, runner, sampler and the reasoning budget."""
