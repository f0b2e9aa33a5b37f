"""The evidence run: what VoRA's serving and training do on one GPU, in under nine minutes."""
