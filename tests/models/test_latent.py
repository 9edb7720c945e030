"""Autoencoders and U-Nets of latent diffusion: published counts, the functions of diffusers, and what a latent is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from minidiff.condition import Condition
from minidiff.diffusers_names import autoencoder_name, latent_unet_name
from minidiff.models.latent_unet import LatentUNet, LatentUNetConfig, SpatialTransformer
from minidiff.models.vae import AutoencoderConfig, AutoencoderKL, AutoencoderVQ, Codebook, DiagonalGaussian

SD = {
    "size": 64,
    "channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "attention": (64, 32, 16),
    "in_channels": 4,
    "out_channels": 4,
    "token_width": 768,
}
TINY_VAE = AutoencoderConfig(16, channels=8, channel_mult=(1, 2), blocks=1, groups=4)


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random parameters everywhere, so that branches that start as nothing count."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return module.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_stable_diffusion_is_counted_as_published():
    """Counts of the released files (their state dicts on the meta device, by the public code)."""
    with torch.device("meta"):
        assert count(LatentUNet(LatentUNetConfig(**SD))) == 859_520_964
        assert len(LatentUNet(LatentUNetConfig(**SD)).state_dict()) == 686
        assert count(LatentUNet(LatentUNetConfig(**SD | {"in_channels": 9}))) == 859_535_364
        vae = AutoencoderKL(AutoencoderConfig(512))
        assert (count(vae.encoder), count(vae.decoder), count(vae)) == (34_163_592, 49_490_179, 83_653_863)
        assert (len(vae.encoder.state_dict()), len(vae.decoder.state_dict())) == (106, 138)


def renamed(ours: nn.Module, theirs: nn.Module, name) -> None:
    """Give theirs the weights of ours."""
    tensors = {name(k): v for k, v in ours.state_dict().items()}
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert tensors.keys() == shapes.keys()
    theirs.load_state_dict({k: v.reshape(shapes[k]) for k, v in tensors.items()})


@pytest.mark.parametrize("matrices", [False, True])
def test_the_unet_is_the_function_of_diffusers(matrices):
    from diffusers import UNet2DConditionModel

    config = LatentUNetConfig(
        16, 32, (1, 2), 2, (16,), 4, 4, heads=4, groups=8, token_width=24, depth=2, matrices=matrices
    )
    ours = awake(LatentUNet(config))
    theirs = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        attention_head_dim=4,
        transformer_layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=24,
        use_linear_projection=matrices,
    ).eval()
    renamed(ours, theirs, latent_unet_name)
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 16, 16, generator=generator), torch.randn(2, 5, 24, generator=generator)
    time = torch.tensor([3.0, 700.0])
    with torch.no_grad():
        expected = theirs(x, time, encoder_hidden_states=tokens).sample
        assert torch.allclose(ours(x, time, Condition(tokens=tokens)), expected, atol=1e-5)
        assert not torch.allclose(ours(x, time, Condition(tokens=tokens + 1)), expected, atol=1e-3)


def test_the_autoencoder_is_the_function_of_diffusers():
    from diffusers import AutoencoderKL as Theirs

    ours = awake(AutoencoderKL(AutoencoderConfig(32, 16, (1, 2, 4), 2, groups=8)))
    theirs = Theirs(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
    ).eval()
    renamed(ours, theirs, lambda name: autoencoder_name(name, levels=3))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        law, expected = ours.encode(x), theirs.encode(x).latent_dist
        assert torch.allclose(law.mode, expected.mode(), atol=1e-5)
        assert torch.allclose(law.std, expected.std, rtol=1e-5)
        assert torch.allclose(law.kl(), expected.kl(), rtol=1e-5)
        assert torch.allclose(ours.decode(law.mode), theirs.decode(law.mode).sample, atol=1e-5)


def test_a_diagonal_gaussian_says_what_torch_says():
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(3, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    law = DiagonalGaussian(mean, log_variance)
    theirs = torch.distributions.Normal(mean, (log_variance / 2).exp())
    standard = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    total = lambda terms: terms.flatten(1).sum(1)
    z = law.sample(generator)
    assert torch.allclose(law.kl(), total(torch.distributions.kl_divergence(theirs, standard)))
    assert torch.allclose(law.entropy(), total(theirs.entropy()))
    assert torch.allclose(law.log_prob(z), total(theirs.log_prob(z)))


def test_samples_have_the_law():
    law = DiagonalGaussian(torch.full((20000, 1, 1, 1), 2.0), torch.full((20000, 1, 1, 1), math.log(0.25)))
    z = law.sample(torch.Generator().manual_seed(0))
    assert abs(z.mean().item() - 2) < 5 * 0.5 / 20000**0.5
    assert abs(z.std().item() - 0.5) < 5 * 0.5 / 40000**0.5


def test_a_codebook_rounds_to_the_nearest_and_passes_gradients():
    book = Codebook(7, 3)
    nn.init.normal_(book.embedding.weight, generator=torch.Generator().manual_seed(0))
    z = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    found = book(z)
    for b, i, j in [(0, 0, 0), (1, 3, 4), (0, 2, 1)]:
        apart = [(z[b, :, i, j] - code).square().sum().item() for code in book.embedding.weight]
        assert found.codes[b, i, j].item() == apart.index(min(apart))
        assert torch.allclose(found.z[b, :, i, j], book.embedding.weight[found.codes[b, i, j]])
    (found.z * 3).sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, 3.0))
    z.grad = None
    book(z).loss.mean().backward()
    apart = (z - found.z).detach() / z[0].numel()
    assert torch.allclose(z.grad, book.commitment * 2 * apart / 2)  # of the mean of two losses
    assert book.embedding.weight.grad is not None


@pytest.mark.parametrize(
    "vae", [AutoencoderKL(TINY_VAE), AutoencoderVQ(AutoencoderConfig(16, 8, (1, 2), 1, codes=5, groups=4))]
)
def test_latents_have_the_promised_shape_and_others_are_refused(vae):
    z = vae.encode(torch.zeros(2, 3, 16, 16))
    z = z.mode if isinstance(z, DiagonalGaussian) else z
    assert z.shape[1:] == vae.config.latent_shape == (4, 8, 8)
    assert vae.decode(z).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"takes \(B, 3, 16, 16\)"):
        vae.encode(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"takes \(B, 4, 8, 8\)"):
        vae.decode(torch.zeros(2, 4, 16, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "channels must be a whole number >= 1, got 0"),
        ({"size": 18}, "size 18 must be divisible"),
        ({"codes": 1}, "codes must be"),
        ({"dropout": 1.0}, "dropout"),
        ({"channel_mult": ()}, "must be divisible by 2 for each of 0 levels"),
        ({"groups": 0}, "groups must be a whole number >= 1, got 0"),
    ],
)
def test_an_impossible_autoencoder_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderConfig(**{"size": 16} | change)


def test_the_wrong_kind_of_latent_is_refused():
    with pytest.raises(ValueError, match="AutoencoderVQ"):
        AutoencoderKL(AutoencoderConfig(16, codes=5))
    with pytest.raises(ValueError, match="codebook"):
        AutoencoderVQ(TINY_VAE)


def test_a_transformer_starts_as_nothing_and_ignores_masked_tokens():
    block = SpatialTransformer(16, 4, tokens=6, groups=4)
    x, tokens = torch.randn(2, 16, 3, 3), torch.randn(2, 5, 6)
    assert torch.equal(block(x, tokens), x)
    awake(block)
    mask = torch.tensor([[True, True, False, True, False]] * 2)
    other = torch.where(mask[..., None], tokens, tokens + 7)
    assert torch.allclose(block(x, tokens, mask), block(x, other, mask), atol=1e-6)
    assert not torch.allclose(block(x, tokens), block(x, other), atol=1e-3)
    with pytest.raises(ValueError, match="none were given"):
        block(x)
    with pytest.raises(ValueError, match="do not divide into 3 heads"):
        SpatialTransformer(16, 3)
    with pytest.raises(ValueError, match="depth must be a whole number >= 1"):
        LatentUNetConfig(16, 32, (1, 2), depth=0)
