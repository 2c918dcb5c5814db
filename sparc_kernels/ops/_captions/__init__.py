"""What the ops share in which every image meets every caption, token by token."""
