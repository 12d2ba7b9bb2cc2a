"""Visual prompts that a text-to-image model paints, as the paper's are.

`plan` says which pictures there are to be, `source` finds the model's files, `pipeline` paints with it, `quality` tells
which pictures failed, `manifest` keeps a line for each, and `painting` puts these together.
"""
