"""The backends that come with the package: a new one is its own file and an entry here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendSpec:
    """One backend: its short name, the `module:Class` behind it, and the pip extra it needs beyond the core."""

    stage: str
    name: str
    target: str
    summary: str
    extra: str | None = None
    origin: str = "openavs"


BUILT_IN = (
    BackendSpec(
        "captioner",
        "clap",
        "openavs.stages.captioners.clap:ClapCaptioner",
        "CLAP: scores a vocabulary of sound descriptions against each window",
    ),
    BackendSpec(
        "captioner",
        "audio-llm",
        "openavs.stages.captioners.audio_lm:AudioLmCaptioner",
        "an audio language model (transformers) answers questions about each window, encoding its sound once",
    ),
    BackendSpec(
        "captioner",
        "audio-tagger",
        "openavs.stages.captioners.audio_tagger:AudioTaggerCaptioner",
        "AST and other audio classifiers (transformers): the labels they were trained on",
    ),
    BackendSpec(
        "captioner",
        "laion-clap",
        "openavs.stages.captioners.laion_clap:LaionClapCaptioner",
        "CLAP through its own package, laion-clap, with its own checkpoints",
        extra="laion-clap",
    ),
    BackendSpec(
        "captioner",
        "oracle",
        "openavs.stages.captioners.oracle:OracleCaptioner",
        "no model: the labels that a benchmark's metadata gives the clip (the paper's OpenAVS*)",
    ),
    BackendSpec(
        "translator",
        "llm",
        "openavs.stages.translators.llm:LlmTranslator",
        "a chat model (transformers) names the things that make the sounds, one request per clip",
    ),
    BackendSpec(
        "translator",
        "openai",
        "openavs.stages.translators.openai:OpenAITranslator",
        "a chat model behind an OpenAI-compatible server: vLLM, transformers serve, a paid one",
        extra="openai",
    ),
    BackendSpec(
        "translator",
        "vllm",
        "openavs.stages.translators.vllm:VllmTranslator",
        "a chat model in vLLM's own engine, in this process: for jobs of many clips",
        extra="vllm",
    ),
    BackendSpec(
        "translator",
        "lexicon",
        "openavs.stages.translators.lexicon_translator:LexiconTranslator",
        "no model: a lexicon of sound events and the things that make them",
    ),
    BackendSpec(
        "translator",
        "none",
        "openavs.stages.translators.identity:IdentityTranslator",
        "what was heard is the prompt, as it is",
    ),
    BackendSpec(
        "detector",
        "grounding-dino",
        "openavs.stages.detectors.grounding_dino:GroundingDinoDetector",
        "Grounding DINO and MM-Grounding-DINO (transformers): phrases to boxes",
    ),
    BackendSpec(
        "detector",
        "owlv2",
        "openavs.stages.detectors.owlv2:Owlv2Detector",
        "OWLv2 (transformers): phrases to boxes",
    ),
    BackendSpec(
        "detector",
        "groundingdino-py",
        "openavs.stages.detectors.groundingdino_py:GroundingDinoPackageDetector",
        "Grounding DINO through its own package",
        extra="groundingdino",
    ),
    BackendSpec(
        "segmenter",
        "sam",
        "openavs.stages.segmenters.sam:SamSegmenter",
        "SAM (transformers): boxes to masks, each image encoded once",
    ),
    BackendSpec(
        "segmenter",
        "segment-anything",
        "openavs.stages.segmenters.segment_anything:SegmentAnythingSegmenter",
        "SAM through its own package",
        extra="segment-anything",
    ),
    BackendSpec(
        "segmenter",
        "sam2",
        "openavs.stages.segmenters.sam2:Sam2Segmenter",
        "SAM 2 (transformers): boxes to masks, each image encoded once",
    ),
    BackendSpec(
        "segmenter",
        "sam3",
        "openavs.stages.segmenters.sam3:Sam3Segmenter",
        "SAM 3 (transformers): phrases to masks in one model; with 'detector: null'",
    ),
    BackendSpec(
        "segmenter",
        "box",
        "openavs.stages.segmenters.box:BoxSegmenter",
        "no model: the filled box is the mask (a baseline)",
    ),
    BackendSpec(
        "verifier",
        "clip",
        "openavs.stages.verifiers.clip:ClipVerifier",
        "CLIP (transformers): drops masks that do not look like their phrase",
    ),
    BackendSpec(
        "tracker",
        "sam2-video",
        "openavs.stages.trackers.sam2_video:Sam2VideoTracker",
        "SAM 2 video (transformers): masks carried between key frames by its memory; segments boxes, too",
    ),
    BackendSpec(
        "tracker",
        "sam3-video",
        "openavs.stages.trackers.sam3_video:Sam3VideoTracker",
        "SAM 3 video (transformers): finds phrases at key frames and carries their masks between them",
    ),
    BackendSpec(
        "tracker",
        "iou",
        "openavs.stages.trackers.iou:IouTracker",
        "no model: segments of neighbouring frames that overlap are the same thing",
    ),
)
