"""Labels of a captioner's vocabulary that name nothing a detector can look for."""

from __future__ import annotations

from openavs.config.recipe import Recipe
from openavs.errors import InputError
from openavs.registry import local_path
from openavs.stages.lexicon import lexicon, names_nothing
from openavs.stages.vocabulary import AUDIOSET, THINGS, load_vocabulary
from openavs.utils.text import pluralize


def unknown_labels(recipe: Recipe) -> str:
    """Return a sentence about the labels of the user's own vocabulary that the lexicon does not know, or "".

    Only where the lexicon translates: a language model is not bound to its words.

    Raises:
        InputError: it knows none of them, so nothing can ever be looked for.
    """
    spec = local_path(recipe.captioner.options.get("vocabulary"), recipe.base)
    own = isinstance(spec, list) or (isinstance(spec, str) and spec not in (AUDIOSET, THINGS))
    if not own or recipe.translator.use != "lexicon":
        return ""
    labels = load_vocabulary(spec)
    unknown = [label for label in labels if not lexicon(label) and not names_nothing(label)]
    if not unknown:
        return ""
    says = (
        f"{len(unknown)} of {pluralize(len(labels), 'label')} of the vocabulary are not known to the lexicon "
        f"(such as '{unknown[0]}'), so nothing is looked for where they are heard; reword them, or use the "
        "translator llm"
    )
    if len(unknown) == len(labels):
        raise InputError(says)
    return f"{says}."
