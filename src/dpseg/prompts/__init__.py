"""Words and pictures -> a `PromptSet`: what the model is told about the classes.

`text` reads class names and fills the templates, `visual` cuts reference pictures, `bank` looks up embeddings of
existing pictures by meaning, and `prompt_set` holds the result.
"""
