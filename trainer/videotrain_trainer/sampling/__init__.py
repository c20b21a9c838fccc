"""Drawing pictures and videos from trained models: the core that the sample stage and the `sample` command share.

`request` says what one video is, `contents` what is in the files that it needs, `loaded` loads, `draw` draws, `scorers`
choose among candidates, `outputs` write, `batch` goes on where it was stopped, `image_first` draws the first frame with
an image model.
"""
