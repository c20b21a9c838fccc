from support.model_fixtures import fixture, mmdit, one_thread

__all__ = ["fixture", "mmdit", "one_thread"]
