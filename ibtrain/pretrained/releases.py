"""A model's configuration in the words of the installed transformers, whichever release wrote it.

transformers 5 renamed fields, and every release passes over names that it does not know: a base
would run with numbers that it was not trained with, and nobody would be told. So what was renamed
is translated here, what changes nothing is dropped, and any other field that the installed release
would pass over is refused by its name.
"""

from collections.abc import Mapping
from typing import Any

import transformers

IS_FIFTH = int(transformers.__version__.partition(".")[0]) >= 5
"""Whether the installed release has the names of transformers 5."""

# Of training, generating, storing and naming: a release lists them or not, and no logit of a model
# built here depends on one. Configurations before 4.30 hold dozens, set to what nobody reads.
WITHOUT_EFFECT = frozenset(  # as a list it would fill two pages
    """
    add_cross_attention architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens cache_implementation chunk_size_feed_forward classif_dropout
    classifier_dropout cross_attention_hidden_size diversity_penalty do_sample dropout dtype
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder
    is_encoder_decoder label2id length_penalty max_length max_sequence_length min_length n_positions
    name_or_path no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences
    output_attentions output_hidden_states output_past output_scores prefix pretraining_tp
    problem_type projection_dim remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tie_last_hidden_states tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p unsloth_fixed unsloth_version
    use_bfloat16 use_return_dict
    """.split()  # noqa: SIM905
)
# Of weights before training: a release lists them in one section or another, as the released
# BLIP-2s do in vision_config.
_OF_NEW_WEIGHTS = ("init_std", "initializer_factor", "initializer_range", "initializer_std")
# Not in a class's own list: token ids of all releases, which transformers 5 lists where they are
# given, and what other names translate to.
_KNOWN_TO_ALL = (
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "model_type"),
    *("rope_parameters", "rope_scaling", "rope_theta", "original_max_position_embeddings"),
    "tie_word_embeddings",
)
# What the rotary positions of a Llama may be, and the further numbers that each takes.
_ROPE_TYPES = {
    "default": "",
    "linear": "factor",
    "yarn": "factor attention_factor beta_fast beta_slow mscale mscale_all_dim truncate "
    "original_max_position_embeddings",
    "llama3": "factor low_freq_factor high_freq_factor original_max_position_embeddings",
}
# transformers computes these anew for the longest text of a batch: what a sample gives would depend
# on the samples beside it, and a gradient on how a batch is split.
_ROPE_BY_LENGTH = ("dynamic", "longrope")
DEFAULT_THETA = 10000.0
# Fields that the network here has one value of.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "num_channels": (3,),
    "position_embedding_type": ("absolute",),
    "use_qformer_text_input": (True, False),  # BLIP-2's own, told by the weights
    "partial_rotary_factor": (1, 1.0),
}


class FieldError(ValueError):
    """A field of a configuration that cannot be used as it stands; names it and says what to do."""


def translated(values: Mapping[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """One section's fields in the installed release's words.

    Args:
        values: as config.json has them.
        kind: transformers' class of the section, which knows its other fields.
        where: the file and section, for messages.

    Raises:
        FieldError: naming a field that the installed release, or the network here, would ignore,
            or that is said twice in contradiction.
    """
    fields = {
        key: value
        for key, value in values.items()
        if key not in WITHOUT_EFFECT and key != "model_type" and not key.startswith("_")
    }
    for key, allowed in _FIXED.items():
        value = fields.pop(key, None)
        if value is not None and value not in allowed:
            raise FieldError(
                f"{where}.{key} is {value!r}, and a model is built with {allowed[0]!r} alone; take "
                "a model that has it so"
            )
    for key in ("image_size", "patch_size"):
        if key in fields:
            fields[key] = _side(fields[key], f"{where}.{key}")
    fields |= _rope(fields, where)
    if not IS_FIFTH and fields.get("scale_decoder_outputs") is not None:
        # transformers 5 calls every T5 tied, and says here what 4.57 means by it.
        fields["tie_word_embeddings"] = fields["scale_decoder_outputs"]
    if not IS_FIFTH:
        fields.pop("scale_decoder_outputs", None)
    check_known(fields, known_fields(kind), where)
    _check_counts(fields, kind().to_dict(), where)
    return fields


def known_fields(kind: Any) -> frozenset[str]:
    """The fields that the installed release reads into a configuration class."""
    return frozenset((*_KNOWN_TO_ALL, *kind().to_dict(), *kind.attribute_map))


def check_known(fields: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    """Refuses a field with a value that would be passed over.

    Raises:
        FieldError: naming it.
    """
    for key, value in fields.items():
        if value and key not in known and key not in _OF_NEW_WEIGHTS:
            raise FieldError(
                f"{where}.{key[:80]} is {_short(value)}, which transformers "
                f"{transformers.__version__} does not know and would ignore; take the field out "
                "where it changes nothing, or open the base with the release that wrote it"
            )


def _check_counts(fields: Mapping[str, Any], usual: Mapping[str, Any], where: str) -> None:
    """Refuses anything but a whole number where one is usual; transformers 4.57 takes anything."""
    for key, value in fields.items():
        # Of token ids there may be several, or none.
        if value is None or type(usual.get(key)) is not int or key.endswith("token_id"):
            continue
        if type(value) is not int:
            raise FieldError(f"{where}.{key} is {_short(value)}; a whole number is wanted")


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary positions of an opened Llama's configuration, in the words of transformers 5."""
    if IS_FIFTH:
        return dict(config.rope_parameters)
    rope = {"rope_type": "default", **(config.rope_scaling or {})}
    rope.pop("type", None)
    return {**rope, "rope_theta": config.rope_theta}


def rope_in_all_words(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_of` as fields that 4.57 and 5 both read as the same."""
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "rope_parameters": dict(rope),
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
        "rope_theta": rope["rope_theta"],
    }


def _rope(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Takes the rotary positions out of a section's fields, whichever release's they are, and gives
    them in the installed one's words.
    """
    outer = {
        key: fields.pop(key)
        for key in ("rope_theta", "original_max_position_embeddings")
        if fields.get(key) is not None
    }
    inner = {
        key: _rope_section(found, f"{where}.{key}")
        for key in ("rope_scaling", "rope_parameters")
        if (found := fields.pop(key, None))
    }
    if not outer and not inner:
        return {}
    rope: dict[str, Any] = {}
    for section, said in ((where, outer), *((f"{where}.{key}", inner[key]) for key in inner)):
        for key, value in said.items():
            if rope.setdefault(key, value) != value:
                raise FieldError(
                    f"{section}.{key} is {_short(value)}, and {where} says {_short(rope[key])} of "
                    "it as well; leave the one that the base was trained with"
                )
    kind = rope.setdefault("rope_type", "default")
    if kind == "default":  # where 4.57 had it beside, for whoever stretches the positions later
        rope.pop("original_max_position_embeddings", None)
    for key in set(rope) - {"rope_type", "rope_theta", *_ROPE_TYPES[kind].split()}:
        raise FieldError(
            f"{where}: rotary positions of type {kind!r} have the field {key[:80]!r}, which "
            "would be ignored; take it out, or name the type that it belongs to"
        )
    rope.setdefault("rope_theta", DEFAULT_THETA)
    if IS_FIFTH:
        return {"rope_parameters": rope}
    words = rope_in_all_words(rope)
    del words["rope_parameters"]
    return words


def _rope_section(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        raise FieldError(
            f"{where} is {_short(found)}; one description of the rotary positions is wanted, the "
            "same for all layers"
        )
    rope = {key: value for key, value in found.items() if value is not None}
    kind = rope.pop("type", None)
    kind = rope.setdefault("rope_type", kind or "default")
    if kind in _ROPE_BY_LENGTH:
        raise FieldError(
            f"{where} has the rope_type {kind!r}, whose positions change with the longest text of "
            "a batch, so that a sample's numbers would depend on the others; take a base with one "
            f"of {', '.join(_ROPE_TYPES)}"
        )
    if not isinstance(kind, str) or kind not in _ROPE_TYPES:
        raise FieldError(
            f"{where} has the rope_type {_short(kind)}; a Llama's is one of "
            f"{', '.join(_ROPE_TYPES)}"
        )
    if rope.get("partial_rotary_factor") in (1, 1.0):
        del rope["partial_rotary_factor"]
    return rope


def _side(value: Any, where: str) -> Any:
    """transformers 5 takes height and width apart; pictures here are square."""
    if not isinstance(value, list):
        return value
    if len(value) != 2 or value[0] != value[1]:
        raise FieldError(f"{where} is {_short(value)}; pictures and patches are square here")
    return value[0]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
