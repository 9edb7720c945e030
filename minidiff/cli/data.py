"""``minidiff data``: pack images into shards, embed them, look into them."""

from __future__ import annotations

import os
from pathlib import Path

import click


def _source(where: str, size: int | None, split: str | None, root: str | None, download: bool):
    """The data set that a folder, an archive, shards, "emoji", or a name of torchvision's stands for."""
    from ..data.emoji import Emoji
    from ..data.images import ImageFolder, torchvision_set
    from ..data.shards import Shards

    path = Path(where).expanduser()
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        if split:
            raise ValueError(f"{where} holds shards; name the folder of the split instead of --split {split}")
        return Shards(path, size)
    if path.exists():
        return ImageFolder(path, size, within=split or "", classes="all")
    if where == "emoji":
        return Emoji(root, size, split or "all")
    if not where.isidentifier():
        raise ValueError(
            f"{where} does not exist; a folder, a zip archive, shards, emoji or a data set of torchvision is accepted"
        )
    return torchvision_set(where, root or os.environ.get("MINIDIFF_DATA", "."), split or "train", size, download)


def _device(name: str | None) -> str:
    """A device of this machine: the one that is named, or a GPU if there is one.

    Raises:
        ValueError: for one that is not here.
    """
    import torch

    from ..store import require_device

    return require_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _done(index: dict, out: str) -> None:
    skipped = [name for shard in index["shards"] for name in shard["skipped"]]
    click.echo(
        f"{out}: {index['samples']} samples in {len(index['shards'])} shards, "
        f"{sum(s['bytes'] for s in index['shards']) / 1e6:.1f} MB, {len(skipped)} skipped"
        + (f" ({', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''})" if skipped else "")
    )


@click.group()
def data() -> None:
    """Shards of images for training at scale, and embeddings of them.

    \b
    Examples:
      minidiff data pack ~/imagenet/train shards/train --size 64
      minidiff data info shards/train
      minidiff data embed shards/train ViT-B-32:laion2b_s34b_b79k embeddings/train
    """


@data.command()
@click.argument("source")
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--size", type=click.IntRange(min=1), help="Resize and crop to squares (default: files as they are).")
@click.option("--per-shard", type=click.IntRange(min=1), default=10_000, show_default=True, help="Images per shard.")
@click.option("--split", help="Only the images below this folder of SOURCE; or the set's split.")
@click.option("--captions", type=click.Path(exists=True, dir_okay=False), help="CSV or JSONL: file_name, text.")
@click.option("--quality", type=click.IntRange(1, 100), help="Encode as JPEG (default: losslessly).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in which images are packed.")
@click.option("--in-order", is_flag=True, help="Do not shuffle.")
@click.option(
    "--root", type=click.Path(file_okay=False), help="Where emoji and torchvision's sets lie (default: $MINIDIFF_DATA)."
)
@click.option("--download", is_flag=True, help="Let torchvision fetch its set.")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that decode and encode.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def pack(
    source, out, size, per_shard, split, captions, quality, seed, in_order, root, download, workers, quiet
) -> None:
    """Pack a folder, a zip archive, emoji or a data set of torchvision into webdataset shards.

    Broken images are skipped and counted. An interrupted run goes on where it stood. Emoji come with captions.

    \b
    Examples:
      minidiff data pack ~/imagenet/train shards/train --size 64 --workers 8
      minidiff data pack cifar10.zip shards/cifar10 --split train
      minidiff data pack pictures/ shards/pictures --captions pictures/metadata.csv
      minidiff data pack CIFAR10 shards/cifar10 --root ~/torchvision --download
      minidiff data pack emoji shards/emoji/train --split train
    """
    from ..data.pack import pack as run
    from ..data.pack import read_captions
    from ..data.shards import Shards

    found = _source(source, size, split, root, download)
    if isinstance(found, Shards):
        raise click.UsageError(
            f"{source} holds shards already: train on them with data.name=shards data.path={source}, or look into them "
            f"with `minidiff data info {source}`"
        )
    texts = read_captions(captions) if captions else getattr(found, "captions", None)
    index = run(found, out, per_shard, texts, quality, None if in_order else seed, workers, progress=not quiet)
    _done(index, out)


@data.command()
@click.argument("name", type=click.Choice(["emoji"]))
@click.option("--root", type=click.Path(file_okay=False), help="Folder (default: $MINIDIFF_DATA, or here).")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def download(name, root, quiet) -> None:
    """Fetch a data set that is published as one archive: emoji, the release of Noto Emoji.

    \b
    Example:
      minidiff data download emoji --root ~/data
    """
    from ..data.emoji import download as fetch

    found = fetch(root or os.environ.get("MINIDIFF_DATA", "."), quiet)
    click.echo(f"{found.path}: {found.bytes / 1e6:.1f} MB; {found.checked}")


@data.command()
@click.argument("source")
@click.argument("encoder")
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--text", is_flag=True, help="Embed the captions of the shards instead of the images.")
@click.option("--suffix", default="npy", show_default=True, help="What the members are called.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples at a time.")
@click.option(
    "--per-shard", type=click.IntRange(min=1), default=10_000, show_default=True, help="Where SOURCE has none."
)
@click.option("--split", help="Only the images below this folder of SOURCE; or torchvision's split.")
@click.option(
    "--root", type=click.Path(file_okay=False), help="Where torchvision's sets lie (default: $MINIDIFF_DATA)."
)
@click.option("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one).")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that decode.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def embed(source, encoder, out, text, suffix, batch, per_shard, split, root, device, workers, quiet) -> None:
    """Compute a frozen ENCODER's embedding of every sample, once, into shards beside those of the images.

    ENCODER is a classifier or a clean CLIP by its name, or a model of open_clip with the name or the file of its
    weights; or a text encoder (minilm, t5:NAME), which says something of every token.

    \b
    Examples:
      minidiff data embed shards/cifar10 cifar16-classifier-clean embeddings/cifar10
      minidiff data embed shards/train ViT-L-14:/weights/clip.safetensors embeddings/clip --suffix clip.npy
      minidiff data embed shards/train ViT-L-14:openai embeddings/text --text --suffix text.npy
      minidiff data embed shards/train t5:google/t5-v1_1-xxl embeddings/t5 --text --suffix text_states.npy
    """
    from ..data.embed import embed as run
    from ..metrics.embedders import embedder

    found = embedder(encoder, _device(device), raw=True)
    images = _source(source, found.size, split, root, False)
    index = run(images, found, out, text, batch, per_shard, suffix, workers, progress=not quiet)
    _done(index, out)


@data.command("embed-for")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--batch", type=click.IntRange(min=1), default=256, show_default=True, help="Samples at a time.")
@click.option("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one).")
@click.option("--workers", type=click.IntRange(min=0), default=0, help="Processes that decode.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def embed_for(recipe, overrides, batch, device, workers, quiet) -> None:
    """Compute every embedding that a RECIPE trains on, by the frozen network that it names, where it looks for them.

    Of images (data.embedding) and captions (data.text_embedding) by a CLIP, of the tokens of captions
    (data.text_states) by a text encoder (data.language); for training and for the card. What is there is kept, and an
    interrupted run goes on where it stood.

    \b
    Examples:
      minidiff data embed-for unclip-prior
      minidiff data embed-for imagen data.language=minilm-2
      minidiff data embed-for unclip-paper-prior data.path=shards system.clip=ViT-L-14:/weights/clip.safetensors
    """
    from ..data.embed import embed as run
    from ..data.sets import SPLITS, described, embeddings_place
    from ..metrics.embedders import embedder
    from ..recipes import load_recipe

    plan = load_recipe(recipe, overrides)
    if plan.data.text_states:
        _states_for(plan.data, batch, _device(device), workers, quiet)
        if not plan.data.embeddings:
            return
    if not plan.data.embeddings or not getattr(plan.options, "clip", ""):
        raise click.UsageError(f"{plan.name} trains on no embeddings: it names no data.embedding and no system.clip")
    found = embedder(plan.options.clip, _device(device), raw=True)
    for split in SPLITS:
        source = described(plan.data, split)
        for name in plan.data.embeddings:
            out, text = embeddings_place(plan.data, name, split), name == "text_embedding"
            index = run(source, found, out, text, batch, suffix=f"{name}.npy", workers=workers, progress=not quiet)
            _done(index, out)


def _states_for(plan, batch: int, device: str, workers: int, quiet: bool) -> None:
    """The states of the captions of a recipe's data, by the text encoder that it names."""
    from ..data.embed import embed as run
    from ..data.sets import SPLITS, all_captions, described, shard_states_place, states_place
    from ..data.states import store_states
    from ..metrics.embedders import embedder
    from ..store import load

    if plan.name == "shards":
        found = embedder(plan.language, device, raw=True)
        for split in SPLITS:
            out, source = shard_states_place(plan, split), described(plan, split)
            index = run(source, found, out, True, batch, suffix="text_states.npy", workers=workers, progress=not quiet)
            _done(index, out)
        return
    place, encoder = Path(states_place(plan)), load(plan.language, device, "text_states")
    count = store_states(place, all_captions(plan), encoder.text_states, plan.language, batch, not quiet)
    click.echo(f"{place}: {count} captions as {plan.language} reads them, {place.stat().st_size / 1e6:.1f} MB")


@data.command()
@click.argument("source")
@click.option("--check", is_flag=True, help="Decode every image, and compare the shards' checksums.")
def info(source, check) -> None:
    """Say what shards (a folder, one archive or a pattern) hold.

    \b
    Examples:
      minidiff data info shards/train
      minidiff data info 'laion/{00000..00099}.tar' --check
    """
    from tqdm import tqdm

    from ..data.samples import Samples, changed
    from ..data.shards import IMAGES, Shards

    samples = Samples(source)
    megabytes = sum(f.stat().st_size for f in samples.files) / 1e6
    click.echo(f"{source}: {len(samples)} samples in {len(samples.files)} shards, {megabytes:.1f} MB")
    click.echo(f"members: {', '.join(f'{s} {samples.count(s)}' for s in samples.suffixes)}")
    images = Shards(source) if any(s in IMAGES for s in samples.suffixes) else None
    if images is not None and images.classes:
        names = ", ".join(images.classes[:10]) + (", ..." if len(images.classes) > 10 else "")
        click.echo(f"classes: {len(images.classes)} ({names})")
    for name, damage in samples.damage.items():
        click.echo(f"damaged: {name} {damage}")
    if check:
        for name in changed(samples):
            click.echo(f"changed since it was written: {name}")
        if images is not None:
            for i in tqdm(range(len(images)), desc="check", unit="image"):
                images.load(i)
            click.echo(f"broken: {len(images.broken)}")
            for name in images.broken[:20]:
                click.echo(f"  {name}")
