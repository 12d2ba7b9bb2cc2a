"""What the command line's commands do, apart from reading their options, which `dpseg.cli` does."""
