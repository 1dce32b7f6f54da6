"What trackers wrote, read back: {figure: [(step, value), ...]} in the order of the file."

import json
import struct


def of_tensorboard(folder):
    "By TensorBoard's own reader."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={'scalars': 0, 'tensors': 0}).Reload()
    return {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()['scalars']}


def words_of_tensorboard(folder):
    "{figure: last word}."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    found = {t: events.Tensors(t)[-1].tensor_proto.string_val[0].decode() for t in events.Tags()['tensors']}
    return {t.removesuffix('/text_summary'): word for t, word in found.items() if t.endswith('/text_summary')}


def of_mlflow(database, name=None):
    "By MLflow's own client: one {figure: ...} per run, the oldest first, and the settings of each."
    from mlflow import MlflowClient

    client = MlflowClient(f'sqlite:///{database}')
    ids = [e.experiment_id for e in client.search_experiments()]
    runs = sorted(client.search_runs(ids), key=lambda r: r.info.start_time)
    runs = [r for r in runs if name in (None, r.info.run_name)]
    figures = [
        {k: [(m.step, m.value) for m in client.get_metric_history(r.info.run_id, k)] for k in r.data.metrics}
        for r in runs
    ]
    return figures, [r.data.params for r in runs], [r.info.status for r in runs]


def records_of_wandb(file):
    "The records of a .wandb file: blocks of 32 KiB, pieces with a header of checksum, length and kind."
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = file.read_bytes(), 7, b''
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack('<HB', data[at + 4 : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # a whole one, or the last piece of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b''


def of_wandb(folder):
    "All runs below a folder: {id: {figure: ...}}, {id: settings}, files of the same id one after the other."
    figures, settings = {}, {}
    for file in sorted(folder.glob('wandb/offline-run-*/run-*.wandb')):
        run = file.stem.removeprefix('run-')
        for record in records_of_wandb(file):
            for item in record.run.config.update if record.HasField('run') else record.config.update:
                name = item.key or '/'.join(item.nested_key)
                settings.setdefault(run, {})[name] = json.loads(item.value_json)
            if not record.HasField('history'):
                continue
            found = {i.key or '/'.join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            for name, value in found.items():
                if not name.startswith('_'):
                    figures.setdefault(run, {}).setdefault(name, []).append((found['_step'], value))
    return figures, settings
