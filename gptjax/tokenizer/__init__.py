"""What are the symbols? SentencePiece models and `tokenizer.json`."""
