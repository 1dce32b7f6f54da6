"""Exported embedders in the hands of sentence-transformers: how far their vectors are from the embedder's own.

`python tests/exported.py FAMILY FOLDER [EXTRA ...]` prints the gaps as JSON, for a process of its own in which further
packages come first: an older sentence-transformers, and torchvision, whose compiled part does not fit every torch. What
processors take of it is plain Python, so its operators are named and never called.
"""

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

HISTORY = np.array([[0, 1, 2], [3, -1, -1], [4, 2, -1], [5, 0, -1]])
TEXTS = ('a red mug', 'a bowl!', 'two <|im_end|> plates', 'x y;', 'été "q" \n z', 'a mug')


def name_operators(place):
    "Make torchvision's operators known by name, so that it can be imported beside any torch."
    source = (Path(place) / 'torchvision' / '_meta_registrations.py').read_text()
    names = {*re.findall(r'register_meta\("(\w+)"\)', source), *re.findall(r'torchvision::(\w+)"', source)}
    library = torch.library.Library('torchvision', 'DEF')
    for name in names:
        library.define(f'{name}(Tensor x) -> Tensor')
    return library


def items(side=56):
    "Six items with odd texts and pictures; the last has no picture."
    from vlm2rec_lab.model.check import made_up_picture
    from vlm2rec_lab.shop.catalogue import Catalogue

    pictures = [made_up_picture(side, side, k) for k in range(5)]
    contents = dict(text=list(TEXTS), image=[*pictures, None])
    return Catalogue(tuple('abcdef'), contents, dict(text='text', image='image'))


def taught(folder, **how):
    "An embedder whose adapters are not zero."
    from vlm2rec_lab.embed import VLMEmbedder

    embedder = VLMEmbedder.from_pretrained(folder, lora=4, device='cpu', dtype=torch.float32, **how)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in embedder.model.named_parameters():
            if 'lora_' in name:
                p.normal_(std=0.1)
    return embedder


def vectors_elsewhere(folder, embedder, catalogue, views, history=HISTORY):
    "{'items' or 'sequences': {view: vectors}} by sentence-transformers; zero where there is nothing to encode."
    from sentence_transformers import SentenceTransformer

    from vlm2rec_lab.model.messages import item_messages, sequence_messages

    model = SentenceTransformer(str(folder), device='cpu')
    size, out = model.get_embedding_dimension(), dict(items={}, sequences={})
    for view in views:
        chats = dict(
            items=item_messages(embedder, catalogue, range(len(catalogue)), view),
            sequences=sequence_messages(embedder, catalogue, history, view),
        )
        for side, found in chats.items():
            there = [k for k, chat in enumerate(found) if chat]
            out[side][view] = z = torch.zeros(len(found), size)
            z[there] = model.encode([found[k] for k in there], convert_to_tensor=True, batch_size=3).float()
    return out, model


def apart(ours, theirs):
    "The largest difference of two sets of vectors {view: [n, d]}."
    return max(float((ours[v] - theirs[v]).abs().max()) for v in theirs)


def compared(embedder, folder, catalogue, views, **how):
    "The gaps of items and sequences of an exported folder."
    embedder.export(folder, **how)
    ours = dict(items=embedder.encode_items(catalogue), sequences=embedder.encode_sequences(catalogue, HISTORY))
    theirs, model = vectors_elsewhere(folder, embedder, catalogue, views)
    return {side: apart(ours[side], theirs[side]) for side in theirs}, ours, theirs, model


def family_gaps(name, home):
    "{case: largest difference} of a family's tiny checkpoint, exported in every way."
    from family_checkpoints import FAST, write

    from vlm2rec_lab.embed import VLMEmbedder, fuse_sum

    base, catalogue, found = write(FAST[name], home / 'base'), items(), {}
    one = taught(base)
    both = ('text', 'image')
    gaps, ours, theirs, model = compared(one, home / 'merged', catalogue, both)
    found |= {f'merged {side}': gap for side, gap in gaps.items()}
    for side in ours:
        fused = (fuse_sum(ours[side]) - fuse_sum(theirs[side])).abs().max()
        found[f'fused {side}'] = float(fused)
    contents = catalogue.content
    plain = model.encode(list(contents['text']), convert_to_tensor=True).float()
    found['texts as they are'] = float((plain - ours['items']['text']).abs().max())
    plain = model.encode(list(contents['image'][:5]), convert_to_tensor=True).float()
    found['pictures as they are'] = float((plain - ours['items']['image'][:5]).abs().max())
    again = VLMEmbedder.from_pretrained(home / 'merged', device='cpu', dtype=torch.float32)
    found['read again'] = apart(ours['items'], again.encode_items(catalogue))
    model.save(str(home / 'saved'))
    saved = VLMEmbedder.from_pretrained(home / 'saved', device='cpu', dtype=torch.float32)
    found['saved by them, read here'] = apart(ours['sequences'], saved.encode_sequences(catalogue, HISTORY))

    from vlm2rec_lab.model.plain import plain_embedder

    chats = plain_embedder(model, catalogue.kinds)
    found['report, items'] = apart(ours['items'], chats.encode_items(catalogue, batch=2))
    found['report, sequences'] = apart(ours['sequences'], chats.encode_sequences(catalogue, HISTORY))

    gaps, *_ = compared(one, home / 'adapters', catalogue, both, merge=False)
    found |= {f'adapters {side}': gap for side, gap in gaps.items()}
    whole = taught(base, fusion='internal')
    gaps, *_ = compared(whole, home / 'joint', catalogue, ('joint',))
    found |= {f'joint {side}': gap for side, gap in gaps.items()}
    each = taught(base, adapters=both)
    for view in both:
        gaps, *_ = compared(each, home / f'only-{view}', catalogue, (view,), view=view)
        found |= {f'only {view} {side}': gap for side, gap in gaps.items()}
    for pool, dims in (('mean', None), ('eos', 24)):
        other = taught(base, pool=pool, dims=dims)
        gaps, *_ = compared(other, home / pool, catalogue, both)
        found |= {f'{pool} {side}': gap for side, gap in gaps.items()}
    large = items(200)
    gaps, *_ = compared(one, home / 'large', large, ('image',))
    return found, {'pictures scaled down': gaps['items']}


if __name__ == '__main__':
    name, home, *extra = sys.argv[1:]
    sys.path[:0] = extra
    library = next((name_operators(place) for place in extra if (Path(place) / 'torchvision').is_dir()), None)
    if library:
        import torchvision  # noqa: F401
    import sentence_transformers

    warnings.simplefilter('ignore')
    found, scaled = family_gaps(name, Path(home))
    print(json.dumps(dict(version=sentence_transformers.__version__, found=found, scaled=scaled)))
