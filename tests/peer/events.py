"""What TensorBoard's own reader finds in a folder of events, as JSON: `events.py FOLDER`."""

import json
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

events = EventAccumulator(sys.argv[1], size_guidance={"histograms": 0, "scalars": 0})
events.Reload()
tags = events.Tags()
hparams = {}
for tag, content in events.PluginTagToContent("hparams").items():
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    field = data.WhichOneof("data")
    if field == "experiment":
        hparams["experiment"] = {
            "hparams": {info.name: info.type for info in data.experiment.hparam_infos},
            "metrics": [info.name.tag for info in data.experiment.metric_infos],
        }
    elif field == "session_start_info":
        values = data.session_start_info.hparams.items()
        hparams["start"] = {key: getattr(value, value.WhichOneof("kind")) for key, value in values}
    else:
        hparams["end"] = data.session_end_info.status
histograms = {}
for tag in tags["histograms"]:
    points = events.Histograms(tag)
    value = points[-1].histogram_value
    histograms[tag] = {"steps": [p.step for p in points], "num": value.num, "min": value.min, "max": value.max, "counted": sum(value.bucket)}
scalars = {tag: [[event.step, event.value] for event in events.Scalars(tag)] for tag in tags["scalars"]}
print(json.dumps({"scalars": scalars, "histograms": histograms, "hparams": hparams}))
