"""The same chain on a GPU. Each test has its CPU twin in the notebooks: 02_embed (bfloat16, parity), 03_train
(losses)."""

import pytest

pytestmark = pytest.mark.gpu


@pytest.fixture(scope='module')
def split():
    from vlm2rec_lab.studio import make_studio

    return make_studio('balanced', seed=0, items=60, users=90, length=6).split(train=40, valid=20, test=30, history=4)


def test_bfloat16_vectors_agree_with_the_cpu(split):
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.tiny import tiny_vlm

    cpu, gpu = (
        VLMEmbedder.from_pretrained(tiny_vlm(), device=d).encode_items(split.catalogue, progress=False)
        for d in ('cpu', 'cuda')
    )
    for m in cpu:
        assert (cpu[m] * gpu[m]).sum(1).min() > 0.99


def test_losses_agree_with_the_cpu(split):
    import numpy as np
    import torch

    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.tiny import tiny_vlm
    from vlm2rec_lab.train import train

    def run(d):
        return train(
            VLMEmbedder.from_pretrained(tiny_vlm(), lora=4, device=d, dtype=torch.float32),
            split,
            'vlm2rec',
            steps=4,
            batch=8,
            eval_every=0,
            progress=False,
        ).frame.loss

    assert np.allclose(run('cpu'), run('cuda'), atol=5e-3)
