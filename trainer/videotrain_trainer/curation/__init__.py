"""Raw videos to scored clips."""
