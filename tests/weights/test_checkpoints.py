"""Golden values of published checkpoints; most are those of transformers' own integration tests, which are named.

Run `python -m pytest tests/weights` on a machine with the checkpoints. The one to begin with is SAM 2.1 tiny: a
download of 156 MB and one picture that test resizing, normalization, box scaling, decoder and score.
"""

from __future__ import annotations

import numpy as np
import pytest

from openavs.media.audio import read_audio
from openavs.media.images import read_image
from openavs.stages.captioners.audio_lm import AudioLmCaptioner
from openavs.stages.captioners.clap import ClapCaptioner
from openavs.stages.captioners.pe_a_frame import PeAFrameCaptioner
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.stages.detectors.owlv2 import Owlv2Detector
from openavs.stages.segmenters.sam import Sam2Segmenter, SamSegmenter
from openavs.stages.segmenters.sam3 import Sam3Segmenter
from openavs.stages.verifiers.pe_av import PeAvVerifier
from openavs.structures.types import Box, Detection, Waveform
from tests.weights import golden
from tests.weights.conftest import Find, Given

pytestmark = pytest.mark.weights

CATS = ("OPENAVS_CATS_IMAGE", "picture 39769 of COCO val2017 (two cats on a couch)")
TRUCK = ("OPENAVS_TRUCK_IMAGE", "notebooks/images/truck.jpg of facebookresearch/segment-anything")
CAR = ("OPENAVS_CAR_IMAGE", "assets/car.png of ybelkada/segment-anything on the hub")
EARS = ("OPENAVS_EARS_IMAGE", "picture 77595 of COCO val2017 (a cat before a laptop)")
SPEECH = ("OPENAVS_SPEECH_SOUND", "the last sound of hf-internal-testing/librispeech_asr_dummy, validation, as WAV")
ESC10 = ("OPENAVS_ESC10", "a folder of ESC-10 recordings named esc10_<Class>_<any>.ogg or .wav")
GLASS = ("OPENAVS_GLASS_SOUND", "glass-breaking-151256.mp3 of raushan-testing-hf/audio-test on the hub")


@pytest.mark.parametrize(
    ("model", "scores", "first"),
    [
        # tests/models/grounding_dino: test_inference_object_detection_head
        ("hf:IDEA-Research/grounding-dino-tiny@main", (0.4526, 0.4082), (344.8143, 23.1796, 637.4004, 373.8295)),
        # tests/models/mm_grounding_dino: test_inference_object_detection_head
        (
            "hf:openmmlab-community/mm_grounding_dino_tiny_o365v1_goldg_v3det@main",
            (0.4480, 0.3973),
            (343.7321, 23.8182, 637.5044, 373.8593),
        ),
    ],
)
def test_grounding_dino_finds_two_cats(
    checkpoint: Find, given: Given, model: str, scores: tuple[float, ...], first: Box
) -> None:
    image = read_image(given(*CATS))
    golden.check_boxes(GroundingDinoDetector(**checkpoint(model)), image, "a cat", scores, first, floor=0.35)


def test_owlv2_finds_two_cats_and_no_dog(checkpoint: Find, given: Given) -> None:
    """The example on the library's page on OWLv2, with boxes cut off at the edges of the picture."""
    image = read_image(given(*CATS))
    detector = Owlv2Detector(**checkpoint("hf:google/owlv2-base-patch16-ensemble@main"))
    cats = [
        Detection((341.67, 23.39, 640.0, 371.35), "cat", 0.614),
        Detection((6.75, 51.96, 326.62, 473.13), "cat", 0.665),
    ]
    golden.check_things(detector, image, ["cat", "dog"], cats, floor=0.3)


def test_sam2_segments_four_boxes_of_a_truck(checkpoint: Find, given: Given) -> None:
    """tests/models/sam2: test_inference_batched_images_batched_boxes, since boxes have a padding point (01841b3)."""
    image = read_image(given(*TRUCK))
    segmenter = Sam2Segmenter(**checkpoint("hf:facebook/sam2.1-hiera-tiny@main"))
    boxes = [
        (75.0, 275.0, 1725.0, 850.0),
        (425.0, 600.0, 700.0, 875.0),
        (1375.0, 550.0, 1650.0, 800.0),
        (1240.0, 675.0, 1400.0, 750.0),
    ]
    golden.check_masks(segmenter, image, boxes, (0.9904, 0.9689, 0.9770, 0.9079))


def test_sam_keeps_the_best_of_three_masks_of_a_car(checkpoint: Find, given: Given) -> None:
    """tests/models/sam: test_inference_mask_generation_three_boxes_point_batch."""
    image = read_image(given(*CAR))
    segmenter = SamSegmenter(**checkpoint("hf:facebook/sam-vit-base@main"), multimask=True)
    boxes = [(620.0, 900.0, 1000.0, 1255.0), (75.0, 275.0, 1725.0, 850.0)]
    golden.check_masks(segmenter, image, boxes, (0.9881, 0.7937))


def test_sam3_finds_both_ears_of_a_cat(checkpoint: Find, given: Given) -> None:
    """tests/models/sam3: test_inference_text_prompt_only.

    The library states the scores without presence (0.9381 and 0.9214) and, for the second ear, with it (0.9210).
    """
    image = read_image(given(*EARS))
    height, width = image.shape[:2]
    presence = 0.9210 / 0.9214
    ears = [
        Detection((0.4704 * width, 0.2014 * height, 0.5615 * width, 0.3770 * height), "ear", 0.9381 * presence),
        Detection((402.1755, 90.1420, 459.6165, 156.3702), "ear", 0.9210),
    ]
    golden.check_phrase(Sam3Segmenter(**checkpoint("hf:facebook/sam3@main")), image, "ear", ears, floor=0.5)


def test_clap_embeds_speech_as_the_library_states(checkpoint: Find, given: Given) -> None:
    """tests/models/clap: test_integration_fused.

    The library gives the samples without their rate, so they count as 48 kHz. Its value is one mean of 512 numbers to
    1e-3, so this catches an unnormalized or constant embedding and little more; the next test checks real sounds.
    """
    audio = read_audio(given(*SPEECH))
    assert audio is not None and audio.rate == 16_000
    captioner = ClapCaptioner(**checkpoint("hf:laion/clap-htsat-fused@0ebdccc578498c90ecb34353b57d2f197cae6e0a"))
    golden.check_embedding(captioner, Waveform(np.asarray(audio.samples), 48_000), 0.00069)


ESC10_LABELS = {
    "Baby_cry": "crying baby",
    "Chainsaw": "chainsaw",
    "Clock_tick": "clock tick",
    "Dog_bark": "dog",
    "Fire_crackling": "crackling fire",
    "Helicopter": "helicopter",
    "Person_sneeze": "sneezing",
    "Rain": "rain",
    "Rooster": "rooster",
    "Sea_waves": "sea waves",
}
ESC50 = [
    "dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow", "rain", "sea waves",
    "crackling fire", "crickets", "chirping birds", "water drops", "wind", "pouring water", "toilet flush",
    "thunderstorm", "crying baby", "sneezing", "clapping", "breathing", "coughing", "footsteps", "laughing",
    "brushing teeth", "snoring", "drinking or sipping", "door knock", "mouse click", "keyboard typing",
    "wooden door creaks", "can opening", "washing machine", "vacuum cleaner", "clock alarm", "clock tick",
    "glass breaking", "helicopter", "chainsaw", "siren", "car horn", "engine", "train", "church bells", "airplane",
    "fireworks", "hand saw",
]  # fmt: skip


@pytest.mark.parametrize(
    "model", ["hf:laion/clap-htsat-fused@0ebdccc578498c90ecb34353b57d2f197cae6e0a", "hf:laion/clap-htsat-unfused@main"]
)
def test_clap_names_nine_of_ten_esc10_recordings(checkpoint: Find, given: Given, model: str) -> None:
    """Among the 50 classes of ESC-50. LAION states about 91 % on all of ESC-50 for its own code and checkpoints."""
    files = [path for path in sorted(given(*ESC10).iterdir()) if path.name.startswith("esc10_")]
    sounds = [(path, label) for path in files for name, label in ESC10_LABELS.items() if f"esc10_{name}_" in path.name]
    assert len(sounds) >= 10
    words = {"vocabulary": ESC50, "template": "This is a sound of {}.", "things": False, "logit_scale": None}
    captioner = ClapCaptioner(**checkpoint(model), **words, top_k=1, threshold=0.0)
    golden.check_labels(captioner, sounds, least=0.9)


def test_qwen2_audio_names_breaking_glass(checkpoint: Find, given: Given) -> None:
    """tests/models/qwen2_audio: test_small_model_integration_test_single. About 17 GB in 16 bits."""
    options = checkpoint("hf:Qwen/Qwen2-Audio-7B-Instruct@main") | {"dtype": "auto"}
    audio = read_audio(given(*GLASS))
    assert audio is not None
    captioner = AudioLmCaptioner(**options, questions=["What's that sound?"], max_new_tokens=32)
    golden.check_answer(captioner, audio, 101, "It is the sound of glass breaking.")


def test_pe_a_frame_gives_the_scores_of_forward(checkpoint: Find, given: Given) -> None:
    """The library states no value; this loads the published files and compares with a direct call."""
    words = ["a person talking", "dog barking", "church bells"]
    captioner = PeAFrameCaptioner(**checkpoint("hf:facebook/pe-a-frame-small@main"), vocabulary=words)
    sound = read_audio(given(*SPEECH))
    assert sound is not None and (captioner.rate, captioner.hop) == (48_000, 1920)
    golden.check_frames(captioner, sound.cut(0.0, 4.0))


def test_pe_av_gives_the_logits_of_forward(checkpoint: Find, given: Given) -> None:
    """The library states no value; this loads the published files and compares with a direct call. Needs timm."""
    pytest.importorskip("timm", reason="timm is not installed: make test-timm")
    options = checkpoint("hf:facebook/pe-av-large-16-frame@main")
    embedder = PeAvVerifier(**options).embedder
    sound, image = read_audio(given(*SPEECH)), read_image(given(*CATS))
    assert sound is not None and embedder.frames == 16
    golden.check_pairs(embedder, sound.cut(0.0, 4.0), np.stack([image[:400, :400]] * 16), "a cat")
