"""unCLIP's networks beside diffusers': weights read from their names and from Karlo's compute the same."""

from __future__ import annotations

import pytest
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from helpers import awake, noise

from minidiff.condition import Condition
from minidiff.models.embedding import Convention, DoorsConfig
from minidiff.models.prior import DiffusionPrior, PriorConfig
from minidiff.models.unet import UNet, UNetConfig
from minidiff.pretrained import LAYOUTS, preset, read_into

E, L = 12, 7
RAW = Convention(normalise=False)
PRIOR = PriorConfig(E, 32, 3, 4, L, states=E, convention=Convention(False, True), text_convention=RAW)
DECODER = UNetConfig(
    size=16, channels=16, channel_mult=(1, 2, 3), blocks=2, attention=(8, 4), out_channels=6, head_channels=8,
    groups=8, token_width=24, embedding=DoorsConfig(E, 4, RAW, True, RAW),
)  # fmt: skip
UP = UNetConfig(
    size=16, channels=16, channel_mult=(1, 2), blocks=2, in_channels=6, middle_attention=False, scale_shift=False,
    groups=8,
)  # fmt: skip


class Held(torch.nn.Module):
    """Of a system only its network."""

    def __init__(self, network):
        super().__init__()
        self.network = network


def read(network, layout, tensors):
    """A network with published weights."""
    return read_into(Held(network), LAYOUTS[layout], tensors, "the test").network


def random(module, seed=0):
    """Every parameter random, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = max(1, parameter.shape[1:].numel()) ** -0.5
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def told(seed=0):
    """States, which count, and an embedding of three texts."""
    mask = torch.arange(L) < torch.tensor([[L], [3], [1]])
    return noise(3, L, E, seed=seed).float(), mask, noise(3, E, seed=seed + 1).float()


@pytest.fixture
def prior():
    return random(PriorTransformer(4, 8, 3, E, L, 4, clip_embed_dim=E))


@pytest.mark.parametrize("time", [0, 411, 999])
def test_diffusers_prior_computes_the_same(prior, time):
    ours = read(DiffusionPrior(PRIOR), "diffusers-prior", prior.state_dict())
    x, (states, mask, z_t) = noise(3, E, seed=5).float(), told()
    times = torch.full((3,), time)
    with torch.no_grad():
        expected = prior(x, times, z_t, states, mask).predicted_image_embedding
        torch.testing.assert_close(ours(x, times, ours.read_states(states, mask, z_t)), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.scale.outward(x), prior.post_process_latents(x))


def decoder_and_doors():
    network = UNet2DConditionModel(
        sample_size=16, out_channels=6, in_channels=3, layers_per_block=2, block_out_channels=(16, 32, 48),
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"), attention_head_dim=8,
        cross_attention_dim=24, norm_num_groups=8, resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )  # fmt: skip
    doors = UnCLIPTextProjModel(
        clip_extra_context_tokens=4, clip_embeddings_dim=E, time_embed_dim=64, cross_attention_dim=24
    )
    return random(network, 1), random(doors, 2)


def test_diffusers_decoder_and_its_doors_compute_the_same():
    network, doors = decoder_and_doors()
    parts = {"decoder": network.state_dict(), "text_proj": doors.state_dict()}
    tensors = {f"{part}.{name}": tensor for part, one in parts.items() for name, tensor in one.items()}
    ours = read(UNet(DECODER), "diffusers-unet", tensors)
    x, t, z, (states, mask, z_t) = noise(3, 3, 16, 16).float(), torch.tensor([0, 400, 999]), noise(3, E).float(), told()
    with torch.no_grad():
        tokens, vector = doors(
            image_embeddings=z, prompt_embeds=z_t, text_encoder_hidden_states=states, do_classifier_free_guidance=False
        )
        counts = torch.nn.functional.pad(mask, (4, 0), value=True)
        expected = network(x, t, tokens, class_labels=vector, encoder_attention_mask=counts).sample
        condition = ours.embedding.image(z) + ours.read_states(states, mask, z_t)
        torch.testing.assert_close(condition.vector, vector, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(condition.tokens, tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x, t, condition), expected, rtol=1e-5, atol=1e-5)


def test_diffusers_null_embedding_is_ours():
    network, doors = decoder_and_doors()
    ours = UNet(DECODER)
    parts = {"decoder": network.state_dict(), "text_proj": doors.state_dict()}
    read(ours, "diffusers-unet", {f"{p}.{n}": t for p, one in parts.items() for n, t in one.items()})
    states, mask, z_t = told()
    both = lambda x: torch.cat([x, x])
    with torch.no_grad():  # theirs doubles the batch, the null half first
        tokens, vector = doors(
            image_embeddings=noise(3, E).float(), prompt_embeds=both(z_t), text_encoder_hidden_states=both(states),
            do_classifier_free_guidance=True,
        )  # fmt: skip
        nothing = ours.embedding.image(torch.zeros(3, E)) + ours.read_states(states, mask, z_t)
    torch.testing.assert_close(nothing.vector, vector[:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nothing.tokens, tokens[:3], rtol=1e-5, atol=1e-5)


def test_diffusers_upsampler_computes_the_same_and_takes_any_size():
    other = random(UNet2DModel(
        sample_size=16, in_channels=6, out_channels=3, layers_per_block=2, block_out_channels=(16, 32),
        down_block_types=["ResnetDownsampleBlock2D"] * 2, up_block_types=["ResnetUpsampleBlock2D"] * 2,
        add_attention=False, norm_num_groups=8, resnet_time_scale_shift="default", downsample_type="resnet",
        upsample_type="resnet", flip_sin_to_cos=True, freq_shift=0, norm_eps=1e-5,
    ))  # fmt: skip
    ours = read(UNet(UP), "diffusers-unet", other.state_dict())
    t = torch.tensor([3, 800])
    for size in (16, 24):
        x = noise(2, 6, size, size).float()
        with torch.no_grad():
            torch.testing.assert_close(ours(x, t), other(x, t).sample, rtol=1e-5, atol=1e-5)


def legacy(tensor, heads, parts):
    """Rows q, k, v, each with its heads, as each head its q, k, v: the order of Karlo's files."""
    return tensor.unflatten(0, (parts, heads, -1)).transpose(0, 1).flatten(0, 2)


def test_karlos_files_are_read(tmp_path):
    """A checkpoint of Lightning and a pair of statistics, legacy rows; and two networks in one file."""
    ours = awake(DiffusionPrior(PRIOR), 0.2, dtype=torch.float32)
    ours.scale.mean.normal_()
    ours.scale.std.uniform_(1, 2)
    own = ours.state_dict()
    stats = own.pop("scale.mean"), own.pop("scale.std")
    file = {f"model.{k}": legacy(v, 4, 3) if "c_qkv" in k else v for k, v in own.items()}
    torch.save({"state_dict": file, "global_step": 3}, tmp_path / "model.ckpt")
    torch.save(stats, tmp_path / "stats.th")
    from minidiff.pretrained import read_tensors

    parts = {"model": read_tensors(tmp_path / "model.ckpt"), "stats": read_tensors(tmp_path / "stats.th")}
    tensors = {f"{part}.{name}": tensor for part, one in parts.items() for name, tensor in one.items()}
    found = read(DiffusionPrior(PRIOR), "karlo-prior", tensors).state_dict()
    assert found.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(found[name], tensor)

    decoder = awake(UNet(DECODER), 0.2, dtype=torch.float32)
    file = {}
    for name, tensor in decoder.state_dict().items():
        if ".qkv." in name or ".encoder_kv." in name:
            module = decoder.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
            tensor = legacy(tensor, module.heads, 3 if ".qkv." in name else 2)
        file[f"model.{name.removeprefix('embedding.')}"] = tensor
    found = read(UNet(DECODER), "karlo-decoder", file)
    x, t = noise(2, 3, 16, 16).float(), torch.tensor([3, 800])
    tokens = Condition(tokens=noise(2, 5, 24).float())
    torch.testing.assert_close(found(x, t, tokens), decoder(x, t, tokens))

    two = {step: awake(UNet(UP), 0.2, seed, torch.float32) for seed, step in enumerate(("first_steps", "last_step"))}
    file = {f"model_{step}.{k}": v for step, network in two.items() for k, v in network.state_dict().items()}
    x = noise(2, 6, 16, 16).float()
    for layout, step in (("karlo-first-steps", "first_steps"), ("karlo-last-step", "last_step")):
        torch.testing.assert_close(read(UNet(UP), layout, file)(x, t), two[step](x, t))


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("karlo-prior", 1_022_028_544, 256), ("karlo-decoder", 893_318_086, 595), ("karlo-up256", 691_579_523, None)],
)
def test_presets_count_to_the_last_digit(name, parameters, tensors):
    network = preset(name).recipe.build(empty=True).network
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert tensors is None or len(list(network.parameters())) == tensors


def test_whole_presets_read_diffusers_names():
    """On the meta device: of the real sizes, every parameter has a name there, and no two the same."""
    with torch.device("meta"):
        theirs = PriorTransformer()
    assert sum(p.numel() for p in theirs.parameters()) == 1_022_030_080
    network = preset("karlo-prior").recipe.build(empty=True).network
    names = LAYOUTS["diffusers-prior"].made_of(network)
    assert names.keys() == network.state_dict().keys()
    assert sorted(part for parts in names.values() for part in parts) == sorted(theirs.state_dict())
    for name in ("karlo-decoder", "karlo-up256"):
        network = preset(name).recipe.build(empty=True).network
        names = LAYOUTS["diffusers-unet"].made_of(network)
        parts = [part for parts in names.values() for part in parts]
        assert names.keys() == network.state_dict().keys() and len(set(parts)) == len(parts)


def test_a_wrong_file_is_refused_by_its_own_names(prior):
    tensors = prior.state_dict()
    tensors["extra"] = tensors.pop("norm_out.weight")
    with pytest.raises(ValueError, match=r"missing: norm_out.weight; unexpected: extra"):
        read(DiffusionPrior(PRIOR), "diffusers-prior", tensors)
