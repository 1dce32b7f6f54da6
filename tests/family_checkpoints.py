"""Tiny random checkpoints of real classes, with the project's own tokenizer."""

import torch
import transformers as T

from vlm2rec_lab.model.tiny import build_tokenizer, studio_corpus

SPECIAL = (
    '<image>',
    '<fake_token_around_image>',
    '<global-img>',
    '<end_of_utterance>',
    '<start_of_image>',
    '<end_of_image>',
    '<image_soft_token>',
    '<bos>',
    '<start_of_turn>',
    '<end_of_turn>',
    '<row_end>',
)


def make_tokenizer():
    "The lab's tokenizer with the marks of all families."
    tokenizer = build_tokenizer(studio_corpus(200))
    tokenizer.add_tokens([T.AddedToken(t, special=True, normalized=False) for t in SPECIAL], special_tokens=True)
    return tokenizer


TOKENIZER = make_tokenizer()
number = TOKENIZER.convert_tokens_to_ids
TEXT = dict(
    vocab_size=len(TOKENIZER),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    head_dim=16,
    bos_token_id=0,
    eos_token_id=number('<|im_end|>'),
    pad_token_id=0,
)
LLAMA = dict(model_type='llama', **TEXT)
MROPE = dict(rope_parameters=dict(rope_type='default', rope_theta=10000.0, mrope_section=[2, 3, 3]))
QWEN = dict(
    image_token_id=number('<|image_pad|>'),
    video_token_id=number('<|video_pad|>'),
    vision_start_token_id=number('<|vision_start|>'),
    vision_end_token_id=number('<|vision_end|>'),
)
TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
SMALL = dict(**TOWER, image_size=56, patch_size=14)
CLIP = dict(model_type='clip_vision_model', projection_dim=16, **SMALL)
SIGLIP = dict(model_type='siglip_vision_model', vision_use_head=False, **SMALL)
SQUARES = dict(size=dict(longest_edge=56), max_image_size=dict(longest_edge=56), do_image_splitting=True)


def pictures_by(name, **how):
    "An image processor of transformers; the one that needs only Pillow, where this version tells the two apart."
    kind = getattr(T, f'{name}Pil', None) or getattr(T, name)
    return kind(**how)


def without_head_dim(**more):
    return {k: v for k, v in TEXT.items() if k != 'head_dim'} | MROPE | more


def qwen_pictures(patch):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = dict(shortest_edge=(2 * patch) ** 2, longest_edge=6 * (2 * patch) ** 2)
    return Qwen2VLImageProcessorPil(size=size, patch_size=patch, merge_size=2, temporal_patch_size=2)


def qwen2_5_vl():
    eye = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=14, out_hidden_size=64)
    eye |= dict(window_size=112, fullatt_block_indexes=[0, 1])
    config = T.Qwen2_5_VLConfig(text_config=without_head_dim(), vision_config=eye, **QWEN)
    return T.Qwen2_5_VLForConditionalGeneration(config), qwen_pictures(14)


def qwen2_vl():
    eye = dict(depth=2, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2, patch_size=14)
    config = T.Qwen2VLConfig(text_config=without_head_dim(), vision_config=eye, **QWEN)
    return T.Qwen2VLForConditionalGeneration(config), qwen_pictures(14)


def qwen3_vl():
    eye = dict(depth=4, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=16, out_hidden_size=64)
    eye |= dict(deepstack_visual_indexes=[1, 2], num_position_embeddings=64)
    config = T.Qwen3VLConfig(text_config={**TEXT, **MROPE}, vision_config=eye, **QWEN)
    return T.Qwen3VLForConditionalGeneration(config), qwen_pictures(16)


def smolvlm():
    config = T.SmolVLMConfig(text_config=LLAMA, vision_config=SMALL, scale_factor=2, image_token_id=number('<image>'))
    return T.SmolVLMForConditionalGeneration(config), pictures_by('SmolVLMImageProcessor', **SQUARES)


def idefics3():
    config = T.Idefics3Config(text_config=LLAMA, vision_config=SMALL, scale_factor=2, image_token_id=number('<image>'))
    return T.Idefics3ForConditionalGeneration(config), pictures_by('Idefics3ImageProcessor', **SQUARES)


def squares():
    return pictures_by('CLIPImageProcessor', size=dict(shortest_edge=56), crop_size=dict(height=56, width=56))


def llava():
    config = T.LlavaConfig(text_config=LLAMA, vision_config=CLIP, image_token_index=number('<image>'))
    return T.LlavaForConditionalGeneration(config), squares()


def gemma3():
    rope = {k: dict(rope_type='default', rope_theta=t) for k, t in (('full', 1e6), ('sliding', 1e4))}
    text = dict(
        **TEXT,
        model_type='gemma3_text',
        query_pre_attn_scalar=16,
        sliding_window=24,
        layer_types=['sliding_attention', 'full_attention'],
        rope_parameters={f'{k}_attention': v for k, v in rope.items()},
    )
    config = T.Gemma3Config(
        text_config=text,
        vision_config=SIGLIP,
        mm_tokens_per_image=4,
        image_token_index=number('<image_soft_token>'),
        boi_token_index=number('<start_of_image>'),
        eoi_token_index=number('<end_of_image>'),
    )
    return T.Gemma3ForConditionalGeneration(config), pictures_by('Gemma3ImageProcessor', size=dict(height=56, width=56))


FAST = dict(
    qwen2_5_vl=qwen2_5_vl,
    qwen2_vl=qwen2_vl,
    qwen3_vl=qwen3_vl,
    smolvlm=smolvlm,
    idefics3=idefics3,
    llava=llava,
    gemma3=gemma3,
)


def internvl():
    text = dict(model_type='qwen2', **{k: v for k, v in TEXT.items() if k != 'head_dim'})
    eye = {**SMALL, 'image_size': [56, 56], 'patch_size': [14, 14]}
    more = dict(image_token_id=number('<image>'), image_seq_length=4, downsample_ratio=0.5)
    config = T.InternVLConfig(text_config=text, vision_config=eye, **more)
    return T.InternVLForConditionalGeneration(config), squares()


def paligemma():
    text, eye = dict(model_type='gemma', **TEXT), {**SIGLIP, 'projection_dim': 64}
    config = T.PaliGemmaConfig(
        text_config=text, vision_config=eye, projection_dim=64, image_token_index=number('<image>')
    )
    return T.PaliGemmaForConditionalGeneration(config), pictures_by(
        'SiglipImageProcessor', size=dict(height=56, width=56)
    )


def idefics2():
    eyes = dict(resampler_n_latents=4, resampler_depth=1, resampler_n_heads=4, resampler_head_dim=16)
    config = T.Idefics2Config(
        text_config=dict(model_type='mistral', **TEXT),
        vision_config=SMALL,
        perceiver_config=dict(**eyes, num_key_value_heads=2),
        image_token_id=number('<image>'),
    )
    size = dict(longest_edge=56, shortest_edge=28)
    pictures = pictures_by('Idefics2ImageProcessor', size=size, do_image_splitting=False)
    return T.Idefics2ForConditionalGeneration(config), T.Idefics2Processor(pictures, TOKENIZER, image_seq_len=4)


def llava_next():
    pins = [[56, 112], [112, 56]]
    config = T.LlavaNextConfig(
        text_config=LLAMA, vision_config=CLIP, image_token_index=number('<image>'), image_grid_pinpoints=pins
    )
    square = dict(height=56, width=56)
    pictures = pictures_by(
        'LlavaNextImageProcessor', size=dict(shortest_edge=56), crop_size=square, image_grid_pinpoints=pins
    )
    how = dict(patch_size=14, vision_feature_select_strategy='default', num_additional_image_tokens=1)
    return T.LlavaNextForConditionalGeneration(config), T.LlavaNextProcessor(pictures, TOKENIZER, **how)


def florence2():
    text = dict(model_type='bart', vocab_size=len(TOKENIZER), d_model=64, encoder_layers=1, decoder_layers=1)
    text |= dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
    eye = dict(depths=[1] * 4, embed_dim=[8, 16, 32, 64], num_heads=[1, 2, 4, 8], num_groups=[1, 2, 4, 8])
    more = dict(vision_config=dict(**eye, projection_dim=64), image_token_id=number('<image>'))
    pictures = pictures_by('CLIPImageProcessor', size=dict(height=64, width=64), do_center_crop=False)
    return T.Florence2ForConditionalGeneration(T.Florence2Config(text_config=text, **more)), pictures


OTHERS = dict(internvl=internvl, paligemma=paligemma, idefics2=idefics2, llava_next=llava_next, florence2=florence2)


def write(build, folder, tokenizer=TOKENIZER):
    "A checkpoint of a class, with weights large enough that a difference shows."
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model, image_processor = build()
        for p in model.parameters():
            if p.ndim > 1:  # some are zero when they are new, and would hide what a picture shows
                p.normal_(std=0.2)
    for part in (model.eval(), tokenizer, image_processor):
        part.save_pretrained(folder)
    return folder
