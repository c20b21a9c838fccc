import pytest
import torch
from support.autoencoders import clip, dc_ae_of, tiny_dc_ae, tiny_vae
from support.model_fixtures import Fixture
from support.numerics import apart, assert_as_exact, assert_near, in_float64, rounding
from support.seams import borders, seam_ratio

from videotrain_trainer.networks.autoencoders import dc_ae
from videotrain_trainer.networks.autoencoders.tiling import Axis, Span, TileCoder, Tiling

pytestmark = pytest.mark.numeric

PLAIN, CAUSAL = Axis(4), Axis(4, causal=True)


@pytest.fixture(scope="module")
def found():
    return Fixture("dc_ae")


def fixture_tiling(found, case):
    facts = found.facts["tiling"][case]
    pixels, frames, overlap = (
        facts[f"{n}"] for n in ("spatial_tile_size", "temporal_tile_size", "tile_overlap_factor")
    )
    return Tiling(pixels=pixels, frames=frames, overlap=overlap)


def test_spatial_tiles_of_the_dc_ae_give_the_published_values(found):
    model = dc_ae_of(found, tiling=fixture_tiling(found, "tile_spatial"))
    found.check("tile_spatial.z", model.encode(found["tile_spatial.in"]))
    found.check("tile_spatial.decoded", model.decode(found["tile_spatial.latent"]))


def test_tiles_of_the_dc_ae_in_time_and_space_give_the_published_values(found):
    model = dc_ae_of(found, tiling=fixture_tiling(found, "tile_time_space"))
    found.check("tile_time_space.z", model.encode(found["tile_time_space.in"]))
    model = dc_ae_of(found, tiling=fixture_tiling(found, "tile_time"))
    found.check("tile_time.decoded", model.decode(found["tile_time.latent"]))


def latent(channels, frames, rows, columns, seed=0):
    return torch.randn(1, channels, frames, rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("latents", [9, 10, 13, 19, 25, 31])
def test_tiled_dc_ae_decoding_loses_no_frames_at_the_published_tiles(latents):
    model = tiny_dc_ae(tiling=Tiling(pixels=None, frames=32))
    assert model.decode(latent(8, latents, 1, 1)).shape == (1, 3, 4 * latents, 32, 32)


def test_a_last_tile_of_one_latent_frame_is_decoded_with_the_one_before_it():
    z, whole = latent(8, 13, 1, 1), tiny_dc_ae()
    out = tiny_dc_ae(tiling=Tiling(pixels=None, frames=32)).decode(z)
    before, last = whole.decode(z[:, :, 6:])[:, :, -4:], whole.decode(z[:, :, 11:])[:, :, -4:]
    weight = torch.tensor([0.0, 0.25, 0.5, 0.75]).view(4, 1, 1)
    assert_near(out[:, :, -4:], torch.lerp(before, last, weight), 4)  # a fade multiplies and adds twice


def blocks(axis):
    """Autoencoder whose latents are means of blocks: every tile agrees with the whole."""

    def encode(x):
        lead, rest = (x[:, :, :1], x[:, :, 1:]) if axis.causal else (x[:, :, :0], x)
        parts = ((lead, (1, 8, 8)), (rest, (4, 8, 8)))
        return torch.cat([torch.nn.functional.avg_pool3d(part, size) for part, size in parts if part.shape[2]], dim=2)

    def decode(z):
        out = z.repeat_interleave(8, 3).repeat_interleave(8, 4).repeat_interleave(4, 2)
        return out[:, :, 3:] if axis.causal else out

    return encode, decode


@pytest.mark.parametrize("frames", [5, 16, 17, 21, 25, 33, 49])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("axis", [PLAIN, CAUSAL])
def test_where_tiles_agree_the_tiled_result_is_the_full_one(axis, overlap, frames):
    frames = frames if axis.causal else 4 * (frames // 4)
    encode, decode = blocks(axis)
    tiles = TileCoder(8, axis, Tiling(pixels=32, frames=16, overlap=overlap))
    video = clip(2, 3, frames, 56, 40)
    z = encode(video)
    assert torch.equal(tiles.encode(encode, video), z)
    assert torch.equal(tiles.decode(decode, z), decode(z))


def test_a_tiled_value_lies_between_those_of_the_tiles_that_cover_it():
    """The fade is a mean, so tiling is off from the full result by no more than the worst tile is."""
    video, whole = clip(1, 3, 9, 40, 40), tiny_vae()
    tiles = TileCoder(8, CAUSAL, Tiling(pixels=32, frames=None))
    tiled = tiles.encode(lambda x: whole.posterior(x).mean_BCTHW, video)
    full = whole.posterior(video).mean_BCTHW
    corners = [(slice(0, 32), slice(0, 4)), (slice(24, 40), slice(3, 5))]
    worst = max(
        apart(whole.posterior(video[..., r, c]).mean_BCTHW, full[..., zr, zc]) for r, zr in corners for c, zc in corners
    )
    assert 0 < apart(tiled, full) <= worst + 4 * rounding(full)  # a fade multiplies and adds twice


def test_what_is_no_larger_than_a_tile_is_coded_whole():
    tiled, whole = tiny_vae(tiling=Tiling(pixels=32, frames=16)), tiny_vae()
    for shape in ((1, 3, 13, 32, 32), (1, 3, 1, 16, 32)):
        assert torch.equal(tiled.encode(clip(*shape)), whole.encode(clip(*shape)))
    z = latent(4, 4, 4, 4)
    assert torch.equal(tiled.decode(z), whole.decode(z))


@pytest.mark.parametrize("make", [tiny_vae, tiny_dc_ae])
def test_a_batch_is_coded_item_by_item_with_the_same_result(make):
    unit = make().config.spatial_compression
    model = make(tiling=Tiling(pixels=2 * unit, frames=None, overlap=0.5))
    video = clip(2, 3, 1, 3 * unit, 2 * unit)
    parts = [model.encode(video[i : i + 1]) for i in range(2)]
    assert torch.equal(model.encode(video), torch.cat(parts))
    whole = make()
    one_by_one = torch.cat([whole.encode(video[i : i + 1]) for i in range(2)])
    assert_as_exact(whole.encode(video), one_by_one, in_float64(whole, video, method="encode"))


@pytest.mark.parametrize(("frames", "chunk"), [(1, 1), (12, 12), (16, 5), (20, 20), (36, 7), (40, 1)])
@pytest.mark.parametrize("make", [tiny_vae, tiny_dc_ae])
def test_a_stream_of_chunks_is_the_tiled_encoding_of_the_whole_bit_for_bit(make, frames, chunk):
    unit, causal = make().config.spatial_compression, make is tiny_vae
    model = make(tiling=Tiling(pixels=2 * unit, frames=16, overlap=0.5))
    video = clip(1, 3, frames + causal * (frames > 1), 3 * unit, unit)
    parts = list(model.encode_stream(video.split(chunk, dim=2)))
    assert torch.equal(torch.cat(parts, dim=2), model.encode(video))


@pytest.mark.parametrize("make", [tiny_vae, tiny_dc_ae])
def test_a_stream_that_fits_into_a_tile_is_the_full_encoding(make):
    video = clip(1, 3, 13 if make is tiny_vae else 16, 32, 32)
    parts = list(make(tiling=Tiling(pixels=None, frames=16)).encode_stream(video.split(3, dim=2)))
    assert len(parts) == 1
    assert torch.equal(parts[0], make().encode(video))


def test_a_stream_gives_latents_before_it_ends_and_holds_no_more_than_a_tile_and_a_chunk():
    seen, largest = [], []
    model = tiny_vae(tiling=Tiling(pixels=None, frames=16))
    model.encoder.register_forward_pre_hook(lambda _m, args: largest.append(args[0].shape[2]))

    def frames():
        for index in range(16):
            seen.append(index)
            yield clip(1, 3, 4 if index else 5, 16, 16, seed=index)

    stream = model.encode_stream(frames())
    first = next(stream)
    assert len(seen) == 5  # 17 frames make a tile; one more shows that it is not the last
    assert first.shape[2] == 4
    assert sum(part.shape[2] for part in stream) + 4 == 17
    assert max(largest) == 17


@pytest.mark.parametrize("frames", [2, 20, 0])
def test_a_stream_of_frames_that_make_no_clip_is_refused(frames):
    model = tiny_vae(tiling=Tiling(pixels=None, frames=16))
    with pytest.raises(ValueError, match="a stream of"):
        list(model.encode_stream([clip(1, 3, frames, 16, 16)] if frames else []))


def test_a_stream_needs_a_temporal_tile():
    with pytest.raises(ValueError, match=r"tiling\.frames is not set"):
        next(tiny_dc_ae(tiling=Tiling(pixels=64, frames=None, overlap=0.5)).encode_stream([clip(1, 3, 4, 32, 32)]))


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        ({"pixels": 40, "frames": None}, r"tiling\.pixels: 40; it must be a multiple of 32 from 32 on"),
        ({"pixels": None, "frames": 30}, r"tiling\.frames: 30; it must be a multiple of 4 from 8 on"),
        ({"pixels": None, "frames": 4}, r"tiling\.frames: 4; it must be a multiple of 4 from 8 on"),
        ({"pixels": 64, "frames": None}, r"with pixels 64 the overlap would be 0.5 of 2 latents"),
        ({"pixels": 64, "frames": None, "overlap": 1.0}, r"tiling\.overlap: 1.0"),
    ],
)
def test_latent_and_pixel_tiles_always_belong_together(tiling, message):
    with pytest.raises(ValueError, match=message):
        tiny_dc_ae(tiling=Tiling(**tiling))


def test_tiles_of_129_frames_at_768px_are_the_published_ones():
    space = Span(Axis(8), 32, 8)
    assert [(8 * cut.start, 8 * cut.stop) for cut in space.cuts(96, decoding=False)] == [
        (0, 256),
        (192, 448),
        (384, 640),
        (576, 768),
    ]
    time = Span(CAUSAL, 16, 4)
    reads = [(cut.start, cut.stop, cut.skip, cut.keep) for cut in time.cuts(33, decoding=True)]
    assert reads == [(0, 17, 0, 13), (12, 29, 1, 12), (24, 33, 1, 8)]


def test_seams_are_found_where_tiles_begin_and_measured():
    tiles = TileCoder(8, CAUSAL, Tiling(pixels=32, frames=16))
    assert borders(tiles, 10) == [24, 48, 72]
    assert borders(tiles, 9, time=True) == [13, 25]
    smooth = torch.linspace(0, 1, 96).expand(1, 3, 2, 4, 96).clone()
    # Steps of 1/95 between values of up to 1 are rounded by 95 units of the last place: a millionth of them.
    assert seam_ratio(smooth, 4, borders(tiles, 12)) == pytest.approx(1.0, rel=4 * 95 * torch.finfo().eps)
    smooth[..., 48:] += 1.0
    assert seam_ratio(smooth, 4, borders(tiles, 12)) > 20
    with pytest.raises(ValueError, match="needs seams and places without one"):
        seam_ratio(smooth, 4, [])


def test_the_overlap_hides_seams_of_decoded_tiles():
    z = latent(4, 2, 12, 4)
    places = [24, 48, 72]
    ratios = []
    for overlap in (0.0, 0.25):
        model = tiny_vae(tiling=Tiling(pixels=32, frames=None, overlap=overlap))
        at = borders(model.tiles, 12)
        ratios.append(seam_ratio(model.decode(z), 3, at))
        assert overlap == 0.0 or at == places
    full = seam_ratio(tiny_vae().decode(z), 3, places)
    assert abs(ratios[1] - full) < abs(ratios[0] - full)


def test_a_norm_in_pieces_is_the_whole_one(monkeypatch):
    model, video = tiny_dc_ae(), clip(1, 3, 12, 32, 32)
    with torch.no_grad():
        whole = model.encode(video)
        decoded = model.decode(whole)
        monkeypatch.setattr(dc_ae, "MAX_NORM_VALUES", 5000)
        assert torch.equal(model.encode(video), whole)
        assert torch.equal(model.decode(whole), decoded)
