"""Class lists by name (`vocabularies`) and photos with label masks on disk (`folder`)."""
