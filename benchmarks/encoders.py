"""Do joint encoders help a recommender, and should they be tuned? Four claims of others, in drawn shops.

    python benchmarks/encoders.py FOLDER [--worlds balanced complementary redundant] [--seeds 5] [--end-seeds 2]
                                  [--out benchmarks/results/encoders.json] [--small]

No weights of a real joint encoder can be had here, so small ones are made on the spot, of one size, from one corpus of
drawn products whose texts tell what their pictures show, as captions do; no product of the shops is in it.

- *separate*: a text and a picture tower of their own, each pre-trained within its modality: two texts of a product, one
  with words left out, belong together, and two pictures of it, one moved and noisy;
- *joint*: the same towers in a CLIP, pre-trained so that a text and its picture belong together, with the same steps;
- *one tower*: the vision-language model that ships with the lab, which reads both through the same layers. It is
  larger and was pre-trained otherwise, so that its rows compare recipes, not the number of towers.

The first two are read in three ways: as they come, after the same contrast of text and picture on the shop's own
products (no purchase), and, the joint one, while all its weights learn with the recommender. Every variant trains the
same models with the same sizes and budgets, chosen by validation Recall@20; 8:1:1 of every customer's products at
random, full ranking without training and validation products. A case is a world, a model and a metric (Recall@20 or
NDCG@20), its customers the means over the seeds; *surely* means that a 95 % interval, bootstrapped over customers,
excludes nothing changed. FOLDER keeps what is done; a second call goes on.
"""

import argparse
import warnings
from pathlib import Path

from common import machine, quiet, say, table, write

READERS = ['VBPR', 'MMGCN', 'MMGCL', 'SLMRec', 'LATTICE']
CLAIMS = {  # what was claimed -> the share in which it was found, and which encoder against which
    'joint encoders beat separate ones': (0.90, [('joint', 'separate')]),
    'tuned on the shop beats as they come': (0.70, [(f'{f}, fine-tuned', f) for f in ('joint', 'separate')]),
    'end to end beats as it comes': (0.83, [('joint, end-to-end', 'joint')]),
    'one tower beats two': (0.80, [('one tower', 'joint')]),
}


def corpus(items, seed):  # -> Catalogue
    "Drawn products whose texts tell what their pictures show."
    from vlm2rec_lab.studio import make_studio

    return make_studio('redundant', seed=seed, items=items, users=60, length=8).catalogue


def twice(catalogue, modality, seed):  # -> Catalogue of two views of one modality
    "Each content beside another view of it: a text without some words, a picture moved and noisy."
    import numpy as np

    from vlm2rec_lab.data import Catalogue

    rng, kind = np.random.default_rng(seed), catalogue.kinds[modality]
    given = catalogue.content[modality]

    def fewer(text):
        words = text.split()
        return ' '.join(w for w, stay in zip(words, rng.random(len(words)) >= 0.3) if stay) or words[0]

    def moved(picture):
        by = rng.integers(-8, 9, 2)
        noisy = np.roll(np.asarray(picture), by, (0, 1)) + rng.normal(0, 20, np.asarray(picture).shape)
        return noisy.clip(0, 255).astype(np.uint8)

    other = [(fewer if kind == 'text' else moved)(c) for c in given]
    return Catalogue(catalogue.ids, {modality: given, 'other': other}, {modality: kind, 'other': kind})


def clip_folder(folder, a):  # -> folder of a random CLIP with its tokenizer and processor
    "A small CLIP that has learned nothing yet."
    import torch
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from vlm2rec_lab.model.tiny import build_tokenizer, studio_corpus

    torch.manual_seed(0)
    tokenizer = build_tokenizer(studio_corpus(300))
    small = dict(hidden_size=a.hidden, num_hidden_layers=2, num_attention_heads=4, intermediate_size=2 * a.hidden)
    words = dict(vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=0)
    words |= dict(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    seen = dict(image_size=32, patch_size=8)
    sizes = dict(text_config=small | words, vision_config=small | seen, projection_dim=a.hidden)
    processor = CLIPImageProcessorPil(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))
    for part in (transformers.CLIPModel(transformers.CLIPConfig(**sizes)), tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def pretrained(folder, a):  # -> {family: {modality: encoder}}
    "Both families of small encoders, after the same steps on the same corpus."
    from vlm2rec_lab.graph.encoders import dual_encoders
    from vlm2rec_lab.graph.tuning import tune_on_shop

    start, shop = dual_encoders(clip_folder(folder / 'clip', a), device='cpu'), corpus(a.corpus, 900)
    how = dict(lr=1e-3, batch=128, most=None, epochs=a.pretrain, patience=10, progress=False)
    joint = tune_on_shop(shop, start, folder=folder / 'joint', **how)
    say(f'joint: {joint}')
    separate = {}
    for m, encoder in start.items():
        views = twice(shop, m, 901)
        found = tune_on_shop(views, {m: encoder, 'other': encoder}, folder=folder / f'separate-{m}', **how)
        say(f'separate, {m}: {found}')
        separate[m] = found.encoders[m]
    return {'separate': separate, 'joint': joint.encoders}


def named(cells, family):  # -> cells whose encoder is called by family and paradigm
    "Cells of a family under its name."
    say_of = {'pre-trained': family, '': ''}
    return [c | dict(encoder=say_of.get(c['encoder'], f'{family}, {c["encoder"]}')) for c in cells]


def one_tower(split, a):  # -> {modality: [N, D]}
    "Vectors of the shipped vision-language model as it is."
    from vlm2rec_lab.model.loading import load_embedder
    from vlm2rec_lab.model.tiny import tiny_vlm

    embedder = load_embedder(tiny_vlm('even'), kinds=split.catalogue.kinds, trainable=False)
    return {m: z.float().cpu().numpy() for m, z in embedder.encode_items(split.catalogue, progress=False).items()}


def drawn_shop(world, a):  # -> Split
    "A drawn shop."
    from vlm2rec_lab.shop.shares import shares
    from vlm2rec_lab.studio import make_studio

    return shares(make_studio(world, seed=0, items=a.items, users=a.users, length=a.length))


def budget(a):  # -> dict
    "What all models share."
    sizes = dict(dim=32, width=a.hidden, said=say, progress=False)
    return sizes | dict(batch=1024, lr=5e-3, epochs=a.epochs, patience=a.patience)


def fixed_cells(world, families, folder, a):  # -> cells of one drawn shop
    "Every family as it comes and tuned, and the one tower."
    from vlm2rec_lab.graph.paradigms import paradigm_vectors
    from vlm2rec_lab.graph.study import run_graph
    from vlm2rec_lab.graph.tuning import tune_on_shop

    split, cells = drawn_shop(world, a), []
    for family, encoders in families.items():
        how = dict(lr=1e-4, batch=128, most=None, epochs=a.tune, progress=False)
        tuned = tune_on_shop(split.catalogue, encoders, folder=folder / world / f'{family}-tuned', **how)
        say(f'{world}, {family}: {tuned}')
        vectors = paradigm_vectors(split.catalogue, encoders, tuned)
        cells += named(run_graph(folder / world / family, split, vectors, a.models, a.seeds, **budget(a)), family)
    vectors = {'one tower': one_tower(split, a)}
    return cells + run_graph(folder / world / 'one', split, vectors, a.models, a.seeds, **budget(a))


def learning_cells(world, encoders, folder, a):  # -> cells of one drawn shop
    "The joint encoders while they learn with the recommender."
    from vlm2rec_lab.graph.paradigms import run_together

    place = folder / world / 'together'
    found = run_together(place, drawn_shop(world, a), encoders, a.models, a.end_seeds, most=None, **budget(a))
    return named(found, 'joint')


def of_world(world, cells):  # -> cells
    "Cells that know their shop."
    return [c | dict(world=world) for c in cells]


def told(
    cells, a
):  # -> {'claims': rows of all worlds, 'worlds': of each, 'cases': of every case, 'worth': of every cell}
    "Shares and cases, rounded, ready for JSON."
    from vlm2rec_lab.graph.study import claims_table, graph_cases, graph_table

    def rounded(frame):
        return [{k: round(v, 4) if isinstance(v, float) else v for k, v in r.items()} for r in frame.to_dict('records')]

    each = {w: [c for c in cells if c['world'] == w] for w in a.worlds}
    pairs = [p for _, of in CLAIMS.values() for p in of]
    worth = {w: graph_table(of).query("left == 'all there'")[['model', 'encoder', 'value']] for w, of in each.items()}
    return dict(
        claims=rounded(claims_table(cells, CLAIMS)),
        worlds=[dict(world=w) | r for w, of in each.items() for r in rounded(claims_table(of, CLAIMS))],
        cases=rounded(graph_cases(cells, pairs=pairs)),
        worth=[dict(world=w) | r for w, frame in worth.items() for r in rounded(frame)],
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('folder', type=Path, help='keeps what is done')
    p.add_argument('--worlds', nargs='+', default=['balanced', 'complementary', 'redundant'])
    p.add_argument('--models', nargs='+', default=READERS)
    p.add_argument('--seeds', type=int, default=5)
    p.add_argument('--end-seeds', type=int, help='of encoders that learn with the recommender (default: --seeds)')
    p.add_argument('--end-worlds', nargs='*', help='shops in which they do (default: --worlds)')
    p.add_argument('--items', type=int, default=300)
    p.add_argument('--users', type=int, default=600)
    p.add_argument('--length', type=int, default=14)
    p.add_argument('--corpus', type=int, default=1500, help='products to pre-train on')
    p.add_argument('--pretrain', type=int, default=40, help='epochs')
    p.add_argument('--tune', type=int, default=20, help='epochs at most')
    p.add_argument('--epochs', type=int, default=60, help='of a recommender, at most')
    p.add_argument('--patience', type=int, default=8)
    p.add_argument('--hidden', type=int, default=64)
    p.add_argument('--small', action='store_true', help='does it run?')
    p.add_argument('--out', type=Path, help='write the figures as JSON here')
    a = p.parse_args()
    if a.small:
        a.items, a.users, a.corpus, a.pretrain, a.tune, a.epochs, a.hidden = 60, 80, 80, 1, 1, 2, 16
    quiet(1)
    warnings.simplefilter('ignore')
    families = pretrained(a.folder, a)
    a.end_seeds, a.end_worlds = a.end_seeds or a.seeds, a.end_worlds or a.worlds
    cells = [c for w in a.worlds for c in of_world(w, fixed_cells(w, families, a.folder, a))]
    cells += [c for w in a.end_worlds for c in of_world(w, learning_cells(w, families['joint'], a.folder, a))]
    found = told(cells, a)
    print(table(found['claims']))
    asked = {k: v for k, v in vars(a).items() if k not in ('folder', 'out', 'small')}
    write(a.out, dict(machine=machine(), asked=asked, **found))


if __name__ == '__main__':
    main()
