"""Built-in backends of all stages: a new one is its own file and an entry here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendSpec:
    """One backend of a stage.

    Attributes:
        stage: the stage, such as `captioner`.
        name: the short name in recipes.
        target: the class as `module:Class`.
        summary: one line for lists.
        extra: the pip extra that it needs, None for the core dependencies.
        origin: the distribution that provides it.
    """

    stage: str
    name: str
    target: str
    summary: str
    extra: str | None = None
    origin: str = "openavs"


# Stage -> name, class in `openavs.stages.<stage>s`, summary, and the pip extra if there is one.
_TABLE: dict[str, tuple[tuple[str, ...], ...]] = {
    "captioner": (
        ("clap", "clap:ClapCaptioner", "CLAP: scores a vocabulary of sound descriptions for each window"),
        (
            "audio-llm",
            "audio_lm:AudioLmCaptioner",
            "an audio language model (transformers) answers questions about each window, which is encoded once",
        ),
        (
            "audio-tagger",
            "audio_tagger:AudioTaggerCaptioner",
            "AST and other audio classifiers (transformers), with the labels they were trained on",
        ),
        (
            "openai-audio",
            "openai_audio:OpenAIAudioCaptioner",
            "an audio language model behind an OpenAI-compatible server: vLLM, a paid API",
            "openai",
        ),
        (
            "pe-a-frame",
            "pe_a_frame:PeAFrameCaptioner",
            "PE-A-Frame (transformers): when each entry of a vocabulary sounds, 25 times a second, as events",
        ),
        (
            "laion-clap",
            "laion_clap:LaionClapCaptioner",
            "CLAP through its own package, laion-clap, with its own checkpoints",
            "laion-clap",
        ),
        (
            "oracle",
            "oracle:OracleCaptioner",
            "no model: the clip's labels in a benchmark's metadata (the paper's OpenAVS*)",
        ),
    ),
    "translator": (
        (
            "llm",
            "llm:LlmTranslator",
            "a chat model (transformers) names the things that make the sounds, one request per clip",
        ),
        (
            "vlm",
            "llm:VlmTranslator",
            "a vision language model (transformers) sees the captions and the frames, one request per clip",
        ),
        (
            "openai",
            "openai:OpenAITranslator",
            "a chat model behind an OpenAI-compatible server: vLLM, transformers serve, a paid API",
            "openai",
        ),
        (
            "vllm",
            "vllm:VllmTranslator",
            "a chat model in vLLM's engine, in this process: for jobs of many clips",
            "vllm",
        ),
        (
            "lexicon",
            "lexicon_translator:LexiconTranslator",
            "no model: a lexicon of sound events and the things that make them",
        ),
        ("none", "lexicon_translator:IdentityTranslator", "no translation: captions are the prompts"),
    ),
    "detector": (
        (
            "grounding-dino",
            "grounding_dino:GroundingDinoDetector",
            "Grounding DINO and MM-Grounding-DINO (transformers): phrases to boxes",
        ),
        ("owlv2", "owlv2:Owlv2Detector", "OWLv2 (transformers): phrases to boxes"),
        (
            "omdet-turbo",
            "omdet_turbo:OmDetTurboDetector",
            "OmDet-Turbo (transformers): phrases to boxes, with cached text, at a fraction of the cost",
            "timm",
        ),
        (
            "groundingdino-py",
            "groundingdino_py:GroundingDinoPackageDetector",
            "Grounding DINO through its own package",
            "groundingdino",
        ),
    ),
    "segmenter": (
        ("sam", "sam:SamSegmenter", "SAM (transformers): boxes to masks, each image encoded once"),
        ("sam-hq", "sam:SamHqSegmenter", "SAM-HQ (transformers): as sam, with finer edges"),
        (
            "segment-anything",
            "segment_anything:SegmentAnythingSegmenter",
            "SAM through its own package",
            "segment-anything",
        ),
        ("sam2", "sam:Sam2Segmenter", "SAM 2 (transformers): boxes to masks, each image encoded once"),
        (
            "edgetam",
            "sam:EdgeTamSegmenter",
            "EdgeTAM (transformers): boxes to masks with the small encoder of a phone",
            "timm",
        ),
        ("sam3", "sam3:Sam3Segmenter", "SAM 3 (transformers): phrases to masks in one model; with 'detector: null'"),
        (
            "sam3-lite-text",
            "sam3:Sam3LiteTextSegmenter",
            "SAM 3 LiteText (transformers): as sam3, with a text encoder an eighth of the size",
        ),
        ("box", "box:BoxSegmenter", "no model: the filled box is the mask (a baseline)"),
    ),
    "verifier": (
        ("clip", "clip:ClipVerifier", "CLIP (transformers): drops masks that do not look like their phrase"),
        (
            "pe-av",
            "pe_av:PeAvVerifier",
            "PE-AV (transformers): keeps the candidates that fit the sound, of those with the same phrase",
            "timm",
        ),
        ("sync", "sync:SyncVerifier", "no model: drops candidates of a phrase that do not move in time with the sound"),
    ),
    "tracker": (
        (
            "sam2-video",
            "sam2_video:Sam2VideoTracker",
            "SAM 2 video (transformers): propagates masks between key frames; segments boxes, too",
        ),
        (
            "edgetam-video",
            "sam2_video:EdgeTamVideoTracker",
            "EdgeTAM video (transformers): as sam2-video, with a small encoder and a short memory",
            "timm",
        ),
        (
            "sam3-video",
            "sam3_video:Sam3VideoTracker",
            "SAM 3 video (transformers): finds phrases at key frames and propagates their masks",
        ),
        ("iou", "iou:IouTracker", "no model: overlapping segments of neighboring frames are the same object"),
    ),
    "reasoner": (
        (
            "reasoner",
            "vision_reasoner:LocalVisionReasoner",
            "a vision language model (transformers) accepts or rejects the numbered candidates of a clip",
        ),
        (
            "openai",
            "vision_reasoner:ServerVisionReasoner",
            "the same with a model behind an OpenAI-compatible server: vLLM, a paid API",
            "openai",
        ),
    ),
}

BUILT_IN = tuple(
    BackendSpec(stage, name, f"openavs.stages.{stage}s.{target}", summary, *extra)
    for stage, rows in _TABLE.items()
    for name, target, summary, *extra in rows
)
