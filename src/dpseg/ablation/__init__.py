"""The paper's ablations on any recipe: which variants there are, how one is measured, and what their figures say."""
