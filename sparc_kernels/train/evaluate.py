"""What the towers learned: retrieval on held-out pairs, grounding of words in the patches they name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sparc_kernels.functional import alignment_weights
from sparc_kernels.train.config import TrainConfig
from sparc_kernels.train.data import Data, to_tensor
from sparc_kernels.train.data_scenes import KINDS, Scene
from sparc_kernels.train.losses import SCORES
from sparc_kernels.train.model import DualEncoder, pooled
from sparc_kernels.train.tokenizer import CaptionTokenizer, TokenBatch

PEAK_SHARE = 0.5  # a patch belongs to a word's map from this share of the map's maximum on
CUTS = (1, 5)  # the k of R@k
IMAGES_AT_A_TIME = 32  # scored with all captions; eager definitions keep something for each of their tokens


class Towers(Protocol):
    """What is asked: a ``Trainer`` after its last step, or a ``LoadedRun``."""

    @property
    def model(self) -> DualEncoder: ...
    @property
    def tokenizer(self) -> CaptionTokenizer: ...
    @property
    def config(self) -> TrainConfig: ...
    @property
    def device(self) -> torch.device: ...
    def autocast(self) -> torch.autocast: ...


@dataclass(frozen=True)
class Encoded:
    """A batch of held-out pairs: ``patches`` [B, P, D], ``tokens`` [B, L, D]; ``start`` is its first pair."""

    start: int
    patches: Tensor
    tokens: Tensor
    batch: TokenBatch


@torch.no_grad()
def encode(towers: Towers, data: Data, batch_size: int = 64) -> Iterator[Encoded]:
    """The held-out pairs in their order, embedded in float32."""
    towers.model.eval()
    for start in range(0, len(data.captions), batch_size):
        part = slice(start, start + batch_size)
        batch = towers.tokenizer(data.captions[part])
        pixels = to_tensor(data.pixels[part]).to(towers.device)
        with towers.autocast():
            patches, tokens = towers.model(pixels, batch.ids.to(towers.device), batch.mask.to(towers.device))
        yield Encoded(start, patches.float(), tokens.float(), batch)


def evaluate(towers: Towers, data: Data) -> dict[str, float]:
    """Retrieval, and grounding where the data are scenes, by name.

    - Retrieval by the cosine of pooled embeddings, whatever the loss; with ``own_`` before the name by the scores of
      the loss itself, where it has others. These take the patches of all pairs at a time.
    - Grounding by the products of patches and words, as ``alignment_weights`` has them; with ``cosine_`` before the
      name by their cosines.
    """
    images, texts, maps, cosine_maps, whole = [], [], [], [], []
    for encoded in encode(towers, data):
        mask = encoded.batch.mask.to(towers.device)
        images.append(encoded.patches.mean(1))
        texts.append(pooled(encoded.tokens, mask))
        if data.scenes:
            maps += _maps(encoded, encoded.patches, data.scenes)
            cosine_maps += _maps(encoded, F.normalize(encoded.patches, dim=2), data.scenes)
        if towers.config.loss in SCORES:
            whole.append((encoded.patches, encoded.tokens, mask))
    results = retrieval(torch.cat(images), torch.cat(texts), data.captions)
    if whole:
        patches, tokens, masks = (end_to_end(parts) for parts in zip(*whole))
        scored = [SCORES[towers.config.loss](some, tokens, masks) for some in patches.split(IMAGES_AT_A_TIME)]
        of_captions, of_images = (torch.cat(scores) for scores in zip(*scored))
        found = recalls(of_captions, of_images, data.captions)
        results |= {f"own_{name}": value for name, value in found.items()}
    if data.scenes:
        size = towers.config.model.patch_size
        results |= grounding(data.scenes, maps, size)
        found = grounding(data.scenes, cosine_maps, size)
        results |= {f"cosine_{name}": value for name, value in found.items() if name.startswith(("pointing", "iou"))}
    return results


def _maps(encoded: Encoded, patches: Tensor, scenes: list[Scene]) -> list[Tensor]:
    """The maps of the words of each scene in the batch. The length of a token changes nothing in its weights."""
    weights = alignment_weights(patches, encoded.tokens).cpu()
    return [word_maps(scenes[encoded.start + row], weights[row], encoded.batch, row) for row in range(len(weights))]


def end_to_end(parts: Sequence[Tensor]) -> Tensor:
    """Batches [B, N, ...] of any N as one, the shorter ones padded with zeros."""
    longest = max(part.shape[1] for part in parts)
    whole = parts[0].new_zeros(sum(map(len, parts)), longest, *parts[0].shape[2:])
    start = 0
    for part in parts:
        whole[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return whole


def retrieval(images: Tensor, texts: Tensor, captions: list[str]) -> dict[str, float]:
    """R@1 and R@5 both ways for [N, D] embeddings, by cosine, and the levels of chance."""
    similarity = F.normalize(images.double(), dim=1) @ F.normalize(texts.double(), dim=1).T
    same = _same_caption(captions, similarity.device).double().mean().item()
    return recalls(similarity, similarity, captions) | {f"chance_r{k}": min(1.0, k * same) for k in CUTS}


def recalls(of_captions: Tensor, of_images: Tensor, captions: list[str]) -> dict[str, float]:
    """R@1 and R@5 both ways by scores [N, N] of all images with all captions: the first rank the captions of an image
    (a row), the others the images of a caption (a column).

    A pair with the very same caption counts as right. Ties count against the model: a constant score finds nothing.
    """
    same = _same_caption(captions, of_captions.device)
    results = {}
    for way, scores in (("image_to_text", of_captions), ("text_to_image", of_images.T)):
        best_right = scores.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
        ahead = ((scores >= best_right) & ~same).sum(1)
        for k in CUTS:
            results[f"{way}_r{k}"] = (ahead < k).double().mean().item()
    return results


def _same_caption(captions: list[str], device: torch.device) -> Tensor:
    """[N, N] bool."""
    number = {text: place for place, text in enumerate(dict.fromkeys(captions))}
    label = torch.tensor([number[text] for text in captions], device=device)
    return label[:, None] == label[None, :]


def word_maps(scene: Scene, weights: Tensor, batch: TokenBatch, row: int) -> Tensor:
    """Alignment weights [L, P] of one caption to a map per word [words, P]: the mean over its tokens.

    A word that was cut off with the end of its caption has a map of zeros.
    """
    maps = torch.zeros(len(scene.words), weights.shape[1])
    for number, word in enumerate(scene.words):
        if tokens := batch.tokens_of(row, word.start, word.end):
            maps[number] = weights[tokens].mean(0)
    return maps


def grounding(scenes: list[Scene], maps: list[Tensor], patch_size: int) -> dict[str, float]:
    """Pointing and IoU of word maps ([words, P] per scene) against the patches that each word speaks of.

    - ``pointing``: share of words whose strongest patch lies in the word's mask.
    - ``iou``: mean IoU of the mask and the patches with at least half of the map's largest weight.
    - ``chance``: a patch drawn at random, which is also the IoU of a uniform map: the mean area of the masks.
    - ``object_chance``: a patch drawn at random from those of all the scene's shapes: knows where, not what.
    """
    hits, overlaps, chances, object_chances = [], [], [], []
    by_kind: dict[str, list[float]] = defaultdict(list)
    for scene, rows in zip(scenes, maps):
        masks = torch.from_numpy(scene.patch_masks(patch_size))
        anything = masks.any(0).sum().item()
        for word, weights in zip(scene.words, rows):
            mask = masks[word.item]
            peak = weights.max()
            hit = float(peak > 0 and mask[weights.argmax()])
            chosen = (weights >= PEAK_SHARE * peak) & (weights > 0)
            hits.append(hit)
            by_kind[word.kind].append(hit)
            overlaps.append(((chosen & mask).sum() / (chosen | mask).sum()).item())
            chances.append(mask.float().mean().item())
            object_chances.append(mask.sum().item() / anything)
    results = {
        "pointing": _mean(hits),
        "iou": _mean(overlaps),
        "chance": _mean(chances),
        "object_chance": _mean(object_chances),
        "words": float(len(hits)),
    }
    return results | {f"pointing_{kind}": _mean(by_kind[kind]) for kind in KINDS if by_kind[kind]}


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
