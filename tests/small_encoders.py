"""Small random checkpoints of the genuine classes of transformers, saved as people have them."""

import json

import torch
import transformers
from safetensors.torch import save_file

WORDS = 'a the red blue green mug lamp chair of oak and linen for tea light small large find photo'.split()
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
SQUARE = dict(height=32, width=32)
SPECIAL = {'<s>': 0, '<pad>': 1, '<other>': 2, '<unk>': 3, '</s>': 4}


def tokenizer(length=None, **more):
    "A tokeniser of words with an opening and a closing token."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {**SPECIAL, **{w: len(SPECIAL) + k for k, w in enumerate(WORDS)}}
    core = Tokenizer(models.WordLevel(vocab, unk_token='<unk>'))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(t, SPECIAL[t]) for t in ('<s>', '</s>')]
    core.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=ends)
    names = dict(bos_token='<s>', eos_token='</s>', pad_token='<pad>', unk_token='<unk>')
    length = {} if length is None else dict(model_max_length=length)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **names, **length, **more)


VOCAB = len(SPECIAL) + len(WORDS)
READ = dict(vocab_size=VOCAB, pad_token_id=1, bos_token_id=0, eos_token_id=4)
SEEN = dict(SMALL, image_size=32, patch_size=8)


def text_models():
    "{name: function that makes a random text model}."
    t = transformers
    thin = dict(dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    gpt = dict(n_embd=32, n_layer=2, n_head=2, n_positions=24)
    wide = dict(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    places = dict(max_position_embeddings=26)
    return {
        'bert': lambda: t.BertModel(t.BertConfig(**SMALL, **READ, max_position_embeddings=24)),
        'mpnet': lambda: t.MPNetModel(t.MPNetConfig(**SMALL, **READ, **places)),
        'xlm-roberta': lambda: t.XLMRobertaModel(t.XLMRobertaConfig(**SMALL, **READ, **places)),
        'distilbert': lambda: t.DistilBertModel(t.DistilBertConfig(**thin, **READ, max_position_embeddings=24)),
        'gpt2': lambda: t.GPT2Model(t.GPT2Config(**gpt, **READ)),
        'qwen3': lambda: t.Qwen3Model(t.Qwen3Config(**SMALL, **READ, num_key_value_heads=1, head_dim=16)),
        't5': lambda: t.T5EncoderModel(t.T5Config(**wide, **READ)),
    }


def image_models():
    "{name: function that makes a random image model and its processor}."
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    t = transformers
    resnet = dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic')
    convnext = dict(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    swin = dict(image_size=32, patch_size=4, window_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2])
    edges = ConvNextImageProcessorPil(size=dict(shortest_edge=32))
    crop = BitImageProcessorPil(size=dict(shortest_edge=36), crop_size=SQUARE)
    squeeze = ViTImageProcessorPil(size=SQUARE)
    return {
        'vit': lambda: (t.ViTModel(t.ViTConfig(**SEEN)), squeeze),
        'dinov2': lambda: (t.Dinov2Model(t.Dinov2Config(**SEEN)), crop),
        'resnet': lambda: (t.ResNetModel(t.ResNetConfig(**resnet)), edges),
        'convnext': lambda: (t.ConvNextModel(t.ConvNextConfig(**convnext)), edges),
        'swin': lambda: (t.SwinModel(t.SwinConfig(**swin)), squeeze),
    }


def dual_models():
    "{name: function that makes a random dual encoder and its processor}."
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    t = transformers
    read = dict(SMALL, **READ, max_position_embeddings=16)
    wider = dict(projection_size=32, vocab_size=VOCAB + 8)  # its tokeniser knows tokens of its own
    flexible = dict(SMALL, num_patches=16, patch_size=8)
    clip = dict(text_config=dict(read, projection_dim=24), vision_config=SEEN, projection_dim=24)
    return {
        'clip': lambda: (
            t.CLIPModel(t.CLIPConfig(**clip)),
            CLIPImageProcessorPil(size=dict(shortest_edge=32), crop_size=SQUARE),
        ),
        'siglip': lambda: (
            t.SiglipModel(t.SiglipConfig(text_config=dict(read, projection_size=32), vision_config=SEEN)),
            SiglipImageProcessorPil(size=SQUARE),
        ),
        'siglip2': lambda: (
            t.Siglip2Model(t.Siglip2Config(text_config={**read, **wider}, vision_config=flexible)),
            Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
        ),
    }


def unified_model():
    "A random FLAVA, which reads text and picture in one, and its processor."
    from transformers.models.flava.image_processing_pil_flava import FlavaImageProcessorPil

    t = transformers
    parts = dict(
        text_config=dict(SMALL, **READ, max_position_embeddings=24), image_config=SEEN, multimodal_config=SMALL
    )
    return t.FlavaModel(t.FlavaConfig(**parts, projection_dim=24)), FlavaImageProcessorPil(
        size=SQUARE, crop_size=SQUARE
    )


def save(folder, *parts, seed=0):
    "Random weights that are far from alike, and all parts in a folder."
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parts[0].parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    for part in parts:
        part.save_pretrained(folder)
    return folder


def note(folder, name, value):
    "A JSON file of a folder."
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def sentence_folder(folder, kind='bert', pooling=None, dense=None, unit=True, limit=12, prompts=None, **transformer):
    "A sentence-transformers folder, as its older versions write it, without the library."
    save(folder, text_models()[kind](), tokenizer())
    lines = [('Transformer', ''), ('Pooling', '1_Pooling')]
    note(folder, 'sentence_bert_config.json', dict(max_seq_length=limit, do_lower_case=False) | transformer)
    note(
        folder,
        '1_Pooling/config.json',
        dict(word_embedding_dimension=32) | (pooling or dict(pooling_mode_mean_tokens=True)),
    )
    if dense:
        out = dense.pop('out_features')
        size = dense.pop('in_features', 32)
        torch.manual_seed(0)
        layers = {'linear': torch.nn.Linear(size, out, bias=dense.get('bias', True))}
        if dense.get('use_residual') and size != out:
            layers['residual'] = torch.nn.Linear(size, out, bias=False)
        note(folder, '2_Dense/config.json', dict(in_features=size, out_features=out, **dense))
        save_file(torch.nn.ModuleDict(layers).state_dict(), folder / '2_Dense' / 'model.safetensors')
        lines.append(('Dense', '2_Dense'))
    if unit:
        (folder / '3_Normalize').mkdir(exist_ok=True)
        lines.append(('Normalize', '3_Normalize'))
    of = 'sentence_transformers.models.'
    modules = [dict(idx=k, name=str(k), path=path, type=of + name) for k, (name, path) in enumerate(lines)]
    note(folder, 'modules.json', modules)
    note(folder, 'config_sentence_transformers.json', prompts or {})
    return folder
