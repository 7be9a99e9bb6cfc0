"""Trains the tiny CLIP: `python -m scripts.train_tiny.clip --out DIR`.

About 0.2 s a step on one CPU core. It learns what masked crops of the world's things look like and what they are
called. As CLIP has seen everything before an open-vocabulary benchmark begins, it knows all twenty kinds, the novel
ones too: base and novel divide what a student's masks were trained on. Beside the kinds it compares every crop with
the other names of AVSBench and with sentences about nothing, which crops of mere ground belong to.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pil, ImageFilter
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from openavs.evaluation.datasets.classes import CLASSES
from openavs.stages.verifiers.clip import NEGATIVE_PROMPTS
from openavs.structures.types import BoolMask, ImageArray
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.synthetic.shapes import Rng
from openavs.training.models.ov_avss.classifier import TEMPLATES
from scripts.train_tiny.log import Teller
from scripts.train_tiny.options import begin
from scripts.train_tiny.weights import save_half

logger = logging.getLogger(__name__)

EDGE = 48
NAMES = CLASSES[1:]  # of which twenty are kinds of the world
_SENTENCES = ("a photo of a {}", *TEMPLATES)
_CROPS = 920  # first word of these pictures' seeds, after the split's: no scene of a data set begins with it
_GROUND = np.round(np.array(OPENAI_CLIP_MEAN) * 255)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the sentences, the names and what there is to say about nothing."""
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
    """An untrained model of about 0.6 M parameters: a ViT of four layers on 6 x 6 patches, and two layers of text."""
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


def crops(rng: Rng, side: int = 112) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """The masked crops `[N, EDGE, EDGE, 3]` of all things of one picture and of a piece of its ground, and what each
    shows: a place in `NAMES`, or -1 for the ground."""
    kinds = rng.choice(len(KINDS), int(rng.choice([1, 2, 3])), replace=False)
    scene = plan_scene([Role(KINDS[k].name, (True,)) for k in kinds], rng, 1, (side, side))
    image, owners = scene.picture(float(rng.uniform(0, 5)))
    found: list[tuple[BoolMask, int]] = []
    for number, kind in enumerate(kinds, start=1):
        if (owners == number).sum() > 60:
            found.append((owners == number, NAMES.index(KINDS[kind].name)))
    found.append((_blot(rng, side) & (owners == 0), -1))
    cut = [(cropped(image, soiled(mask, rng), rng), name) for mask, name in found if mask.any()]
    return np.stack([crop for crop, _ in cut]), [name for _, name in cut]


def soiled(mask: BoolMask, rng: Rng) -> npt.NDArray[np.float32]:
    """A mask as models make them: often too coarse, too wide or too narrow, with a soft edge; from 0 to 1."""
    whole = Pil.fromarray(mask.astype(np.uint8) * 255)
    if rng.random() < 0.7:
        coarse = int(rng.integers(20, 57))
        whole = whole.resize((coarse, coarse), Pil.Resampling.BILINEAR).resize(whole.size, Pil.Resampling.BILINEAR)
    whole = whole.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 2))))
    soft = np.asarray(whole, dtype=np.float32) / 255
    return np.clip((soft - rng.uniform(0.2, 0.6)) * rng.uniform(2, 8) + 0.5, 0, 1).astype(np.float32)


def cropped(image: ImageArray, mask: npt.NDArray[np.float32], rng: Rng) -> npt.NDArray[np.uint8]:
    """The square about a mask, in the middle of it or at its top left, on black or on CLIP's mean colour."""
    rows, columns = np.flatnonzero(mask.max(axis=1) > 0.5), np.flatnonzero(mask.max(axis=0) > 0.5)
    if not len(rows):
        rows = columns = np.arange(mask.shape[0])
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    side = max(height, width) * (1 + rng.uniform(0, 0.3) * (rng.random() < 0.5))
    y, x = rows[0], columns[0]
    if rng.random() < 0.6:
        y, x = y - (side - height) / 2, x - (side - width) / 2
    ground = _GROUND if rng.random() < 0.5 else np.zeros(3)
    shown = (image * mask[..., None] + ground * (1 - mask[..., None])).round().astype(np.uint8)
    framed = Pil.new("RGB", (3 * image.shape[1], 3 * image.shape[0]), tuple(int(v) for v in ground))
    framed.paste(Pil.fromarray(shown), (image.shape[1], image.shape[0]))
    left, top = float(x) + image.shape[1], float(y) + image.shape[0]
    box = (left, top, left + float(side), top + float(side))
    return np.asarray(framed.resize((EDGE, EDGE), Pil.Resampling.BICUBIC, box=box))


def _blot(rng: Rng, side: int) -> BoolMask:
    """A roundish piece of the picture."""
    y, x = np.mgrid[:side, :side]
    a, b, ry, rx = *rng.uniform(0.1, 0.9, 2), *rng.uniform(0.06, 0.3, 2)
    return np.asarray(((y / side - a) / ry) ** 2 + ((x / side - b) / rx) ** 2 < 1)


def batch_of(rng: Rng, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised crops `[N, 3, EDGE, EDGE]` of some pictures, and what they show."""
    made = [crops(rng) for _ in range(pictures)]
    pixels = torch.from_numpy(np.concatenate([images for images, _ in made])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std, torch.tensor([name for _, names in made for name in names])


# -------------------------------------------------------------------------------------------------------- training


def embed_texts(model: CLIPModel, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Unit vectors `[N, D]` of texts."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


def loss_of(model: CLIPModel, tokenizer: Any, rng: Rng, pictures: int) -> torch.Tensor:
    """Cross-entropy of every crop over all names, in a sentence drawn for this step, and one text about nothing; now
    and then the sound of a kind stands for its name, as a verifier may be asked."""
    pixels, shown = batch_of(rng, pictures)
    sentence = str(rng.choice(_SENTENCES))
    heard = {kind.name: kind.heard[0] for kind in KINDS} if rng.random() < 0.15 else {}
    texts = [sentence.replace("{}", heard.get(name, name)) for name in NAMES]
    texts.append(str(rng.choice(NEGATIVE_PROMPTS)))
    image = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    logits = model.logit_scale.exp() * image @ embed_texts(model, tokenizer, texts).T
    return F.cross_entropy(logits, torch.where(shown < 0, len(NAMES), shown), label_smoothing=0.02)


def train(model: CLIPModel, tokenizer: Any, *, steps: int, pictures: int, rate: float, seed: int) -> None:
    """Trains in place; the model is left in evaluation mode."""
    average, tell = 0.0, Teller(logger)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    model.train()
    for step in range(steps):
        loss = loss_of(model, tokenizer, scene_rng("train", _CROPS, seed, step), pictures)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(60)))
        average = 0.99 * average + 0.01 * loss.item() if step else loss.item()
        tell(step, loss=average)
    model.eval()


@torch.inference_mode()
def evaluate(model: CLIPModel, tokenizer: Any, *, split: str, pictures: int) -> dict[str, float]:
    """Of crops of base kinds, of novel kinds and of ground: the share named rightly among all names and nothing."""
    pixels, shown = batch_of(scene_rng(split, _CROPS, 0, 0), pictures)
    texts = [f"a photo of a {name}" for name in NAMES]
    logits = (
        F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        @ torch.cat([embed_texts(model, tokenizer, texts), embed_texts(model, tokenizer, list(NEGATIVE_PROMPTS))]).T
    )
    best = logits.argmax(dim=1)
    right = torch.where(shown < 0, best >= len(NAMES), best == shown)
    novel = torch.tensor([name in {kind.name for kind in KINDS if kind.novel} for name in NAMES])
    of = {"ground": shown < 0, "base": (shown >= 0) & ~novel[shown], "novel": (shown >= 0) & novel[shown]}
    return {name: float(right[rows].double().mean()) for name, rows in of.items()}


def main() -> None:
    """Trains, saves the model and its processor, and logs the figures on the validation split."""
    args = begin(__doc__, steps=3000, pictures=16, rate=2e-3, seed=0)  # `pictures` a step; about three crops each
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    logger.info("%.2f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    train(model, tokenizer, steps=args.steps, pictures=args.pictures, rate=args.rate, seed=args.seed)
    save_half(model, args.out)
    sizes = {"size": {"shortest_edge": EDGE}, "crop_size": {"height": EDGE, "width": EDGE}}
    CLIPProcessor(image_processor=CLIPImageProcessorPil(**sizes), tokenizer=tokenizer).save_pretrained(args.out)
    figures = evaluate(model, tokenizer, split="val", pictures=300)
    logger.info("%s", json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
