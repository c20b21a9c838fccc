"""Model definitions; they import torch and model.common only."""
