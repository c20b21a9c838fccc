"""TorchX's side of the command: `torchx run -s videotrain vtr.run --manifest RUN.yaml`."""
