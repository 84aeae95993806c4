"""Model weights in files, ours and other people's."""
