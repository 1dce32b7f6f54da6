"""Make data/story, which "In five minutes" of nbs/03_train.ipynb shows before anything is trained: vectors and history
of SFT and of the recommended training on the embedded studio (two trainings, a minute each on a quiet core)."""

import sys
from pathlib import Path

from vlm2rec_lab.embed import VLMEmbedder
from vlm2rec_lab.model.tiny import tiny_vlm
from vlm2rec_lab.show.story import CUSTOMERS, RUNS, save_story, story_split
from vlm2rec_lab.train import encode_split, train

ROOT = Path(__file__).resolve().parent.parent


def main(out):
    split, vectors, histories = story_split(), {}, {}
    settings = dict(steps=120, batch=32, lr=2e-3, tau=0.07, eval_every=40, progress=False)
    for name, fuse in RUNS.items():
        apart = dict(adapters=split.catalogue.modalities) if name == 'per-modality' else {}
        more = {'weight': 3.0} if name == 'per-modality' else {}
        embedder = VLMEmbedder.from_pretrained(tiny_vlm(), lora=4, seed=0, **apart)
        histories[name] = train(embedder, split, name, fuse=fuse, **settings, **more)
        found = encode_split(embedder, split, progress=False)
        sequences = {m: z[:CUSTOMERS] for m, z in found['sequences'].items()}
        vectors[name] = dict(items=found['items'], sequences=sequences)
        print(histories[name], flush=True)
    save_story(out, vectors, histories)
    print(f'{out}: {sum(p.stat().st_size for p in Path(out).iterdir()) / 1e3:.0f} kB')


if __name__ == '__main__':
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / 'data' / 'story')
