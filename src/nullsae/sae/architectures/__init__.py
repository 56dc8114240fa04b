"""One file per architecture: its keys, its training, how finished SAEs of it encode, its cost."""
