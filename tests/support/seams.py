"""Where seams of tiles lie, and how visible they are."""

import torch


def borders(tiles, latents, time=False):
    """Where tiles begin along an axis of so many latents, in decoded samples: the places at which seams could show.

    Args:
        tiles: of the autoencoder.
        latents: length of the axis.
        time: the time axis instead of rows or columns.
    """
    span = tiles._time if time else tiles._space
    if span is None:
        return []
    starts = [cut.start + cut.skip for cut in span.cuts(latents, decoding=True)[1:]]
    return [span.axis.samples(start) for start in starts]


def seam_ratio(x_BCTHW, axis, places):
    """How visible seams are: the mean absolute step across them over that between all other neighbours.

    1 means that nothing can be seen; a hard edge gives much more. The steps of the samples next to the fade count too,
    since a fade may hide the edge and leave a ramp: callers compare the ratio of tiled and full decoding.

    Args:
        x_BCTHW: decoded pixels.
        axis: 2 for time, 3 for rows, 4 for columns.
        places: indices of the first sample behind each seam.

    Raises:
        ValueError: there is no seam, or nothing beside seams.
    """
    steps = x_BCTHW.float().diff(dim=axis).abs().transpose(0, axis).flatten(1).mean(dim=1)
    at = torch.zeros(len(steps), dtype=torch.bool, device=steps.device)
    at[[place - 1 for place in places]] = True
    if not at.any() or at.all():
        raise ValueError(f"axis {axis} of {len(steps) + 1} samples needs seams and places without one to compare")
    return float(steps[at].mean() / steps[~at].mean().clamp_min(1e-12))
