"""The metrics of AVSBench as straightforwardly as they are usually written: what `metrics.py` measures speed against.

They follow the published evaluation step by step in our own words: a pass over the pixels for each of 255 thresholds,
a softmax and an arg-max over 71 maps of scores for every frame, a comparison of the whole picture with each of 71
colours. Nothing here is used for scoring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

CLASSES = 71


def f_curve(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """F (beta squared 0.3) of one frame at 255 thresholds; float32 `[H, W]` both, the truth 0 and 1."""
    precision, recall = torch.zeros(255), torch.zeros(255)
    for k, threshold in enumerate(torch.linspace(0, 1 - 1e-10, 255)):
        selected = (probability >= threshold).float()
        hit = (selected * truth).sum()
        precision[k] = hit / (selected.sum() + 1e-20)
        recall[k] = hit / (truth.sum() + 1e-20)
    return torch.nan_to_num((1 + 0.3) * precision * recall / (0.3 * precision + recall), nan=0.0)


def class_areas(scores: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Pixels per class that are hit, predicted and true, `[3, 71]`, of scores `[71, H, W]` before the softmax."""
    return areas_of_labels(torch.softmax(scores, dim=0).argmax(dim=0), truth)


def areas_of_labels(predicted: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The same of label maps `[H, W]`, by three histograms over classes that are counted from 1."""
    predicted, true = predicted.float() + 1, truth.float() + 1
    hit = predicted * (predicted == true)  # 0 where they differ, which is in no bin
    return torch.stack([torch.histc(values, bins=CLASSES, min=1, max=CLASSES) for values in (hit, predicted, true)])


def iou_and_f(areas: torch.Tensor) -> torch.Tensor:
    """A frame's IoU and F per class, `[2, 71]`, 0 where undefined."""
    hit, predicted, true = areas.double()
    iou = hit / (predicted + true - hit + 2.2e-16)
    precision, recall = hit / predicted, hit / true
    f = 1.3 * precision * recall / (0.3 * precision + recall)
    return torch.stack([iou, torch.nan_to_num(f, nan=0.0)])


def decode_palette(picture: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Class indices `[H, W]` of colours `[H, W, 3]`: one comparison of the whole picture per colour."""
    is_class = [np.all(np.equal(picture, colour), axis=-1) for colour in palette]
    return np.asarray(np.argmax(np.stack(is_class, axis=-1).astype(np.float32), axis=-1))
