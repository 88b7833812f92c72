"""What the commands of a relay are made of."""
