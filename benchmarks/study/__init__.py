"""What the training figures of docs/training.md rest on: several seeds of several losses, mean and spread."""
