from support.monitored_run import operator_scene, scene  # noqa: F401 - fixtures
