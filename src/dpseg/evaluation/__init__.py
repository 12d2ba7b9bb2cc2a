"""How good a model is: one confusion matrix over a data set, and the tables made from it."""
