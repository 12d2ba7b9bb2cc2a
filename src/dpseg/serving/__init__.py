"""A model for other programs: the HTTP API, with limits, batches of several requests, and figures for monitoring."""
