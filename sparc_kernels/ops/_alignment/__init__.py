"""What the rooms of the alignment family share."""
