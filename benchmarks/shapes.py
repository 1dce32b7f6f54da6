"""Shapes of models by family, as their makers published them, and each once more as a toy.

A family is a key of `SHAPES`: the name of its model, the settings of decoder and vision tower, true and toy, and how
its pictures come. One more family is one more entry; what is read of it, and which tokens stand for a picture, is the
business of `model.families`. Weights are random, so ids of tokens are those of a tokenizer that is made here.
"""

import re
from dataclasses import dataclass, field

from vlm2rec_lab.model.families import FAMILIES


def decoder(vocab, hidden, inner, layers, heads, shared, longest, **more):  # -> dict
    "Sizes of a decoder: `heads` for queries, `shared` for keys and values, `longest` prompt in tokens."
    sizes = dict(vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    sizes |= dict(num_attention_heads=heads, num_key_value_heads=shared, max_position_embeddings=longest)
    return sizes | dict(use_cache=False) | more


def llama(*sizes, **more):  # -> dict
    "Sizes of a decoder of Llama's kind."
    return decoder(*sizes, model_type='llama', **more)


def tower(hidden, inner, layers, heads, **more):  # -> dict
    "Sizes of a tower with patches of 14 pixels, of SigLIP's kind unless more is said."
    return dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads) | (
        dict(patch_size=14) | more
    )


def rope(theta, *section, **more):  # -> dict
    "Rotary positions in time, line and column."
    turns = dict(rope_type='default', rope_theta=theta, mrope_section=list(section))
    return dict(rms_norm_eps=1e-6, rope_parameters=turns | more)


def qwen_tower(depth, hidden, inner, heads, out, patch, **more):  # -> dict
    "Sizes of a tower of Qwen's own."
    sizes = dict(depth=depth, hidden_size=hidden, intermediate_size=inner, num_heads=heads, out_hidden_size=out)
    return sizes | dict(patch_size=patch) | more


MERGED = dict(spatial_merge_size=2, temporal_patch_size=2)
TOY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
TOY |= dict(head_dim=8, max_position_embeddings=2048)
TOY_LLAMA = dict(model_type='llama', use_cache=False) | TOY
TOY_ROPE = dict(rope_type='default', rope_theta=1e4, mrope_section=[1, 1, 2])
TOY_QWEN = TOY | dict(rope_parameters=TOY_ROPE)
TOY_TOWER = tower(32, 64, 2, 2, image_size=56)
CLIP = dict(model_type='clip_vision_model')
BARE_SIGLIP = dict(model_type='siglip_vision_model', vision_use_head=False)


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
    more: dict = field(default_factory=dict)  # further entries of the configuration
    toy_more: dict = field(default_factory=dict)
    pictures: str = ''  # class of the image processor, for pictures of one square; '': Qwen's
    tied: bool = True  # are the embeddings the output layer?


SHAPES = {
    'qwen2_5_vl': Shape(
        'Qwen2.5-VL-3B',
        decoder(151936, 2048, 11008, 36, 16, 2, 128000, **rope(1e6, 16, 24, 24)),
        qwen_tower(32, 1280, 3420, 16, 2048, 14, window_size=112, fullatt_block_indexes=[7, 15, 23, 31], **MERGED),
        TOY_QWEN,
        qwen_tower(1, 32, 64, 2, 32, 14, window_size=112, fullatt_block_indexes=[0], spatial_merge_size=2),
    ),
    'qwen2_vl': Shape(
        'Qwen2-VL-2B',
        decoder(151936, 1536, 8960, 28, 12, 2, 128000, **rope(1e6, 16, 24, 24)),
        dict(depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, patch_size=14),
        TOY_QWEN,
        dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2, patch_size=14),
    ),
    'qwen3_vl': Shape(
        'Qwen3-VL-2B',
        decoder(151936, 2048, 6144, 28, 16, 8, 262144, head_dim=128, **rope(5e6, 24, 20, 20, mrope_interleaved=True)),
        qwen_tower(24, 1024, 4096, 16, 2048, 16, num_position_embeddings=2304, **MERGED)
        | dict(deepstack_visual_indexes=[5, 11, 17]),
        TOY | dict(rope_parameters=TOY_ROPE | dict(mrope_interleaved=True)),
        qwen_tower(1, 32, 64, 2, 32, 16, num_position_embeddings=64, deepstack_visual_indexes=[0]),
        patch=16,
        toy_pixels=64,
    ),
    'smolvlm': Shape(
        'SmolVLM-Instruct (2.2B)',
        llama(49155, 2048, 8192, 24, 32, 32, 16384, head_dim=64),
        tower(1152, 4304, 27, 16, image_size=384),
        TOY_LLAMA,
        TOY_TOWER,
        pixels=384,
        more=dict(scale_factor=3),
        toy_more=dict(scale_factor=2),
        pictures='SmolVLMImageProcessor',
        tied=False,
    ),
    'idefics3': Shape(
        'Idefics3-8B-Llama3',
        llama(128259, 4096, 14336, 32, 32, 8, 131072, head_dim=128),
        tower(1152, 4304, 27, 16, image_size=364),
        TOY_LLAMA,
        TOY_TOWER,
        pixels=364,
        more=dict(scale_factor=2),
        toy_more=dict(scale_factor=2),
        pictures='Idefics3ImageProcessor',
        tied=False,
    ),
    'llava': Shape(
        'LLaVA-1.5-7B',
        llama(32064, 4096, 11008, 32, 32, 32, 4096, head_dim=128),
        tower(1024, 4096, 24, 16, image_size=336, projection_dim=768) | CLIP,
        TOY_LLAMA,
        TOY_TOWER | CLIP | dict(projection_dim=16),
        pixels=336,
        pictures='CLIPImageProcessor',
        tied=False,
    ),
    'gemma3': Shape(
        'Gemma 3 4B',
        decoder(262208, 2560, 10240, 34, 8, 4, 131072, head_dim=256, sliding_window=1024),
        tower(1152, 4304, 27, 16, image_size=896) | BARE_SIGLIP,
        TOY | dict(sliding_window=24),
        TOY_TOWER | BARE_SIGLIP,
        pixels=896,
        more=dict(mm_tokens_per_image=256),
        toy_more=dict(mm_tokens_per_image=4),
        pictures='Gemma3ImageProcessor',
    ),
}


def with_marks(tokenizer, family):  # -> the same tokenizer
    "A tokenizer that knows the tokens around a family's pictures and in its templates."
    from transformers import AddedToken

    f = FAMILIES[family]
    words = [f.opening, f.place, f.closing, *(x for p in f.templates for x in (p.item, p.sequence))]
    tokens = dict.fromkeys(re.findall(r'<[^<>\s]+>', ''.join(words)))
    new = [AddedToken(w, special=True, normalized=False) for w in tokens if w not in tokenizer.get_vocab()]
    tokenizer.add_tokens(new, special_tokens=True)
    return tokenizer


def shape_of(family, tokenizer, toy=False):  # -> configuration of transformers
    "The configuration of a family's model, or of its toy; ids of special tokens are those of a tokenizer made here."
    from transformers import AutoConfig

    shape, token = SHAPES[family], with_marks(tokenizer, family).convert_tokens_to_ids
    text = dict(shape.toy_text, vocab_size=len(tokenizer)) if toy else shape.text
    text = text | dict(bos_token_id=None, eos_token_id=token('<|im_end|>'), pad_token_id=token('<|endoftext|>'))
    marks, more = FAMILIES[family], shape.toy_more if toy else shape.more
    if 'qwen' in family:
        names = dict(video_token_id='<|video_pad|>', vision_start_token_id=marks.opening)
        more = more | {k: token(v) for k, v in names.items()} | dict(vision_end_token_id=token(marks.closing))
    config = AutoConfig.for_model(
        family,
        text_config=text,
        vision_config=shape.toy_vision if toy else shape.vision,
        tie_word_embeddings=shape.tied,
        **more,
    )
    place = 'image_token_id' if hasattr(config, 'image_token_id') else 'image_token_index'
    setattr(config, place, token(marks.place))
    return config


def processor_of(family, toy=False):  # -> image processor for pictures of one size
    "The image processor of a family's model."
    from vlm2rec_lab.model.tiny import build_image_processor

    shape = SHAPES[family]
    edge = shape.toy_pixels if toy else shape.pixels
    if shape.pictures:
        return square_processor(shape.pictures, edge)
    processor = build_image_processor(edge)
    processor.patch_size = shape.patch
    return processor


def square_processor(name, edge):  # -> image processor
    "An image processor of transformers for squares; the one that needs only Pillow, where there are two."
    import transformers

    kind = getattr(transformers, f'{name}Pil', None) or getattr(transformers, name)
    square = dict(height=edge, width=edge)
    if name == 'CLIPImageProcessor':
        return kind(size=dict(shortest_edge=edge), crop_size=square)
    if name == 'Gemma3ImageProcessor':
        return kind(size=square)
    return kind(size=dict(longest_edge=edge), max_image_size=dict(longest_edge=edge), do_image_splitting=False)
