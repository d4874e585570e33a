"""How good the model is, beside what costs nothing."""
