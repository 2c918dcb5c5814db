"""What the ops share that align the patches of an image with the tokens of its caption."""
