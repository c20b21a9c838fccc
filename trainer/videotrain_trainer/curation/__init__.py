"""Raw videos to normalised clips with scores, captions and a report of what was dropped and why."""
