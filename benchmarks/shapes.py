"""Shapes of models by family, as their makers published them, and each once more as a toy.

A family is a key of `SHAPES`: the name of its model, the settings of decoder and vision tower, true and toy, and the
image processor. One more family is one more entry; what `VLMEmbedder` reads of it is the business of `model.families`.
"""

from dataclasses import dataclass

TEXT_3B = dict(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    max_position_embeddings=128000,
    rms_norm_eps=1e-6,
    rope_parameters=dict(rope_type='default', rope_theta=1e6, mrope_section=[16, 24, 24]),
    use_cache=False,
)
VISION_3B = dict(
    depth=32,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    patch_size=14,
    spatial_merge_size=2,
    temporal_patch_size=2,
    window_size=112,
    fullatt_block_indexes=[7, 15, 23, 31],
    out_hidden_size=2048,
)
TOY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
TOY |= dict(head_dim=8, max_position_embeddings=2048)
TOY_ROPE = dict(rope_type='default', rope_theta=1e4, mrope_section=[1, 1, 2])
TOY_EYE = dict(depth=1, hidden_size=32, intermediate_size=64, num_heads=2, out_hidden_size=32)
ROPE_3 = dict(rope_type='default', rope_theta=5e6, mrope_interleaved=True, mrope_section=[24, 20, 20])
TEXT_3 = dict(vocab_size=151936, num_key_value_heads=8, head_dim=128, max_position_embeddings=262144)
TEXT_3 |= dict(rms_norm_eps=1e-6, rope_parameters=ROPE_3, use_cache=False)
VISION_3 = dict(depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, patch_size=16, out_hidden_size=2048)
VISION_3 |= dict(spatial_merge_size=2, temporal_patch_size=2, num_position_embeddings=2304)


@dataclass(frozen=True)
class Shape:
    "A family's true sizes and its toy ones."

    name: str  # of the model
    text: dict  # of the decoder
    vision: dict  # of the vision tower
    toy_text: dict
    toy_vision: dict
    patch: int = 14  # edge of a patch in pixels, of Qwen's image processor
    pixels: int = 224  # edge of a picture
    toy_pixels: int = 56


SHAPES = {
    'qwen2_5_vl': Shape(
        'Qwen2.5-VL-3B',
        TEXT_3B,
        VISION_3B,
        TOY | dict(rope_parameters=TOY_ROPE),
        TOY_EYE | dict(patch_size=14, spatial_merge_size=2, window_size=112, fullatt_block_indexes=[0]),
    ),
    'qwen2_vl': Shape(
        'Qwen2-VL-2B',
        TEXT_3B | dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12),
        dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, patch_size=14),
        TOY | dict(rope_parameters=TOY_ROPE),
        dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14),
    ),
    'qwen3_vl': Shape(
        'Qwen3-VL-2B',
        TEXT_3 | dict(hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16),
        VISION_3 | dict(deepstack_visual_indexes=[5, 11, 17]),
        TOY | dict(rope_parameters=TOY_ROPE | dict(mrope_interleaved=True)),
        TOY_EYE | dict(patch_size=16, num_position_embeddings=64, deepstack_visual_indexes=[0]),
        patch=16,
        toy_pixels=64,
    ),
}


def shape_of(family, tokenizer, toy=False):  # -> configuration of transformers
    "The configuration of a family's model, or of its toy; ids of special tokens are those of a tokenizer made here."
    from transformers import AutoConfig

    shape, token = SHAPES[family], tokenizer.convert_tokens_to_ids
    text = dict(shape.toy_text, vocab_size=len(tokenizer)) if toy else shape.text
    text = text | dict(bos_token_id=None, eos_token_id=token('<|im_end|>'), pad_token_id=token('<|endoftext|>'))
    return AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=shape.toy_vision if toy else shape.vision,
        tie_word_embeddings=True,
        image_token_id=token('<|image_pad|>'),
        video_token_id=token('<|video_pad|>'),
        vision_start_token_id=token('<|vision_start|>'),
        vision_end_token_id=token('<|vision_end|>'),
    )


def processor_of(family, toy=False):  # -> image processor for pictures of one size
    "The image processor of a family's model."
    from vlm2rec_lab.model.tiny import build_image_processor

    shape = SHAPES[family]
    processor = build_image_processor(shape.toy_pixels if toy else shape.pixels)
    processor.patch_size = shape.patch
    return processor
