"""What the store, the models and the data say of a run before it costs anything; see videotrain_api.checks."""
