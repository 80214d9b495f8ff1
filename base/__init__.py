"""The embedded model, and what made it: its documents (documents.py, words.txt, tools.txt) and its training (train.py)."""
