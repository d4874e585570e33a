"""How good the model is, against baselines that cost nothing."""
