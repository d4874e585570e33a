"""One file a fused operation, its plain reference in the same file."""
