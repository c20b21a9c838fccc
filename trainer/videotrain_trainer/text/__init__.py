"""Text encoders and their files."""
