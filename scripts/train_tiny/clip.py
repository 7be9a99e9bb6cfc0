"""Train the tiny CLIP: `python -m scripts.train_tiny.clip --out DIR`.

About 0.2 s per step on one CPU core. It is trained on masked crops of synthetic objects and their names. Like the
paper's CLIP it knows all twenty categories, the novel ones too: base and novel refer to the masks that a student is
trained on. Other classes of each crop are the remaining names of AVSBench and negative prompts, which crops of
background belong to.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from openavs.evaluation.datasets.tables import CLASSES
from openavs.stages.verifiers.clip import NEGATIVE_PROMPTS
from openavs.structures.types import BoolMask, ImageArray
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.synthetic.shapes import Rng
from openavs.training.models.ov_avss.classifier import TEMPLATES
from scripts.train_tiny.common import StepLogger, parse_arguments, save_half

logger = logging.getLogger(__name__)

EDGE = 48
NAMES = CLASSES[1:]  # of which twenty are synthetic categories
_SENTENCES = ("a photo of a {}", *TEMPLATES)
_CROPS = 920  # seed of these images, not used by any data set
_BACKGROUND = np.round(np.array(OPENAI_CLIP_MEAN) * 255)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer of the prompts, the names and the negative prompts."""
    split = pre_tokenizers.BertPreTokenizer()
    texts = [*_SENTENCES, *NEGATIVE_PROMPTS, *NAMES, *(kind.heard[0] for kind in KINDS)]
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())} - {"{", "}"})
    ids = {word: number for number, word in enumerate(["<pad>", "<unk>", *words, "<s>", "</s>"])}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = split
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=24,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """Build an untrained model of about 0.6 M parameters: a ViT of four layers on 6 x 6 patches, two text layers."""
    vision = {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "image_size": EDGE,
        "patch_size": 8,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 24,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


# ----------------------------------------------------------------------------------------------------------- crops


def sample_crops(rng: Rng, side: int = 112) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Sample masked crops `[N, EDGE, EDGE, 3]` of one image, with indices into `NAMES`; -1 for background.

    There is one crop of each object and one of a random part of the background.
    """
    kinds = rng.choice(len(KINDS), int(rng.choice([1, 2, 3])), replace=False)
    scene = plan_scene([Role(KINDS[k].name, (True,)) for k in kinds], rng, 1, (side, side))
    image, owners = scene.picture(float(rng.uniform(0, 5)))
    found: list[tuple[BoolMask, int]] = []
    for number, kind in enumerate(kinds, start=1):
        if (owners == number).sum() > 60:
            found.append((owners == number, NAMES.index(KINDS[kind].name)))
    found.append((_random_ellipse(rng, side) & (owners == 0), -1))
    cut = [(crop_mask(image, augment_mask(mask, rng), rng), name) for mask, name in found if mask.any()]
    return np.stack([crop for crop, _ in cut]), [name for _, name in cut]


def augment_mask(mask: BoolMask, rng: Rng) -> npt.NDArray[np.float32]:
    """Imitate a predicted mask: often coarse, too large or too small, with soft edges; from 0 to 1."""
    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    if rng.random() < 0.7:
        coarse = int(rng.integers(20, 57))
        whole = whole.resize((coarse, coarse), Image.Resampling.BILINEAR).resize(whole.size, Image.Resampling.BILINEAR)
    whole = whole.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 2))))
    soft = np.asarray(whole, dtype=np.float32) / 255
    return np.clip((soft - rng.uniform(0.2, 0.6)) * rng.uniform(2, 8) + 0.5, 0, 1).astype(np.float32)


def crop_mask(image: ImageArray, mask: npt.NDArray[np.float32], rng: Rng) -> npt.NDArray[np.uint8]:
    """Crop a square around a mask, centered or at its top left corner, on black or on CLIP's mean color."""
    rows, columns = np.flatnonzero(mask.max(axis=1) > 0.5), np.flatnonzero(mask.max(axis=0) > 0.5)
    if not len(rows):
        rows = columns = np.arange(mask.shape[0])
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    side = max(height, width) * (1 + rng.uniform(0, 0.3) * (rng.random() < 0.5))
    y, x = rows[0], columns[0]
    if rng.random() < 0.6:
        y, x = y - (side - height) / 2, x - (side - width) / 2
    background = _BACKGROUND if rng.random() < 0.5 else np.zeros(3)
    shown = (image * mask[..., None] + background * (1 - mask[..., None])).round().astype(np.uint8)
    framed = Image.new("RGB", (3 * image.shape[1], 3 * image.shape[0]), tuple(int(v) for v in background))
    framed.paste(Image.fromarray(shown), (image.shape[1], image.shape[0]))
    left, top = float(x) + image.shape[1], float(y) + image.shape[0]
    box = (left, top, left + float(side), top + float(side))
    return np.asarray(framed.resize((EDGE, EDGE), Image.Resampling.BICUBIC, box=box))


def _random_ellipse(rng: Rng, side: int) -> BoolMask:
    """Return the mask of a random ellipse."""
    y, x = np.mgrid[:side, :side]
    a, b, ry, rx = *rng.uniform(0.1, 0.9, 2), *rng.uniform(0.06, 0.3, 2)
    return np.asarray(((y / side - a) / ry) ** 2 + ((x / side - b) / rx) ** 2 < 1)


def batch_of(rng: Rng, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalized crops `[N, 3, EDGE, EDGE]` of some images, and their classes."""
    made = [sample_crops(rng) for _ in range(images)]
    pixels = torch.from_numpy(np.concatenate([crops for crops, _ in made])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std, torch.tensor([name for _, names in made for name in names])


# -------------------------------------------------------------------------------------------------------- training


def embed_texts(model: CLIPModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Return unit vectors `[N, D]` of texts."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def loss_of(model: CLIPModel, tokenizer: Any, rng: Rng, images: int) -> torch.Tensor:
    """Return the cross-entropy of crops over all names, in a random prompt, and a negative prompt."""
    pixels, shown = batch_of(rng, images)
    sentence = str(rng.choice(_SENTENCES))
    # Sometimes the caption of a sound replaces its name, because a verifier can get captions as phrases.
    captions = {kind.name: kind.heard[0] for kind in KINDS} if rng.random() < 0.15 else {}
    texts = [sentence.replace("{}", captions.get(name, name)) for name in NAMES]
    texts.append(str(rng.choice(NEGATIVE_PROMPTS)))
    image = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    logits = model.logit_scale.exp() * image @ embed_texts(model, tokenizer, texts).T
    return F.cross_entropy(logits, torch.where(shown < 0, len(NAMES), shown), label_smoothing=0.02)


def train(model: CLIPModel, tokenizer: Any, *, steps: int, images: int, rate: float, seed: int) -> None:
    """Train in place; the model is in evaluation mode afterwards."""
    average, log_step = 0.0, StepLogger(logger)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        loss = loss_of(model, tokenizer, scene_rng("train", _CROPS, seed, step), images)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(60)))
        average = 0.99 * average + 0.01 * loss.item() if step else loss.item()
        log_step(step, loss=average)
    model.eval()


@torch.inference_mode()
def evaluate(model: CLIPModel, tokenizer: Any, *, split: str, images: int) -> dict[str, float]:
    """Return the shares of correctly classified crops of base categories, novel categories and background."""
    pixels, shown = batch_of(scene_rng(split, _CROPS, 0, 0), images)
    texts = [f"a photo of a {name}" for name in NAMES]
    logits = (
        F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        @ torch.cat([embed_texts(model, tokenizer, texts), embed_texts(model, tokenizer, list(NEGATIVE_PROMPTS))]).T
    )
    best = logits.argmax(dim=1)
    right = torch.where(shown < 0, best >= len(NAMES), best == shown)
    novel = torch.tensor([name in {kind.name for kind in KINDS if kind.novel} for name in NAMES])
    of = {"background": shown < 0, "base": (shown >= 0) & ~novel[shown], "novel": (shown >= 0) & novel[shown]}
    return {name: float(right[rows].double().mean()) for name, rows in of.items()}


def main() -> None:
    """Train, save the model and its processor, and log the figures on the validation split."""
    # `images` is the number of images per step; each has about three crops.
    args = parse_arguments(__doc__, steps=3000, images=16, rate=2e-3, seed=0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, tokenizer, steps=args.steps, images=args.images, rate=args.rate, seed=args.seed)
    save_half(model, args.out)
    sizes = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": EDGE, "width": EDGE}}
    CLIPProcessor(image_processor=CLIPImageProcessorPil(**sizes), tokenizer=tokenizer).save_pretrained(args.out)
    figures = evaluate(model, tokenizer, split="val", images=300)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
