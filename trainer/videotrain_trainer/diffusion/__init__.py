"""Mathematics of the diffusion model: flow matching, conditions, sampling; no files, no processes."""
