"""Videos, frame by frame, with prompts that are encoded once.

Read `segment` first: `clip` reads frames, `shots` parts them at cuts, `smoothing` steadies what the model sees in them,
`painter` draws it, `movie` writes it.
"""
