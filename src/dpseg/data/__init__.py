"""Class lists by name (`vocabularies`), and photos with label masks: any of them by name or place (`benchmarks`)."""
