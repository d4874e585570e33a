"""The language model, low-rank adaptation, and the heads of reward and value."""
