"""Training: photos and masks -> a model. Reading order: corpus, regions, sampler, prompt_tables, losses, loop."""
