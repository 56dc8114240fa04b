"""What knows nothing of the study: errors, files, randomness, moments, progress, checkpoints."""
