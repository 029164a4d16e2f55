"""Text to ids and back, with character offsets."""
