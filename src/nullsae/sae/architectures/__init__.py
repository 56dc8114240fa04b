"""One file per architecture: its keys, training, encoding after training, and cost."""
