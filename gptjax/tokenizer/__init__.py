"""What are the symbols? Train, load and inspect SentencePiece models."""
