//! TensorBoard events of a trial, in its folder `tensorboard`: scalars and histograms per epoch,
//! and the options in the HParams tab. Writing events never changes a result.

use crate::config::{Config, Value};
use crate::data::Watched;
use crate::train::checkpoint::Row;
use protobuf::Message;
use protobuf::well_known_types::Value as Field;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use tch::{Kind, Tensor};
use tensorboard_proto::api::{DataType, Experiment, HParamInfo, MetricInfo, MetricName, Status};
use tensorboard_proto::event::Event;
use tensorboard_proto::plugin_hparams::{HParamsPluginData, SessionEndInfo, SessionStartInfo};
use tensorboard_proto::summary::{HistogramProto, Summary, Summary_Value, SummaryMetadata, SummaryMetadata_PluginData};
use tensorboard_rs::record_writer::RecordWriter;

/// Returns the tags of the metrics that the HParams tab shows beside the options.
fn metrics(watched: Watched) -> [String; 4] {
    let of = |name: &str| format!("{}/{name}", watched.name());
    [of("top1"), of("top5"), of("loss"), "train/loss".into()]
}

/// Number of buckets of a histogram.
const BUCKETS: i64 = 30;

/// Writer of a trial's event file. Uses the crate's record writer, since its `FileWriter` panics,
/// in a thread of its own, on a full disk. After a failed write nothing more is written; the error
/// is left to the checkpoint, whose write reports it.
pub struct Events(Option<RecordWriter<BufWriter<File>>>);

impl Events {
    /// Creates a new event file beside those of earlier runs of the trial.
    pub fn new(trial: &Path) -> Events {
        let folder = trial.join("tensorboard");
        let name = format!("events.out.tfevents.{:010}.foldconv.{}", now() as u64, std::process::id());
        let file = std::fs::create_dir_all(&folder).and_then(|()| File::create(folder.join(name)));
        let mut events = Events(file.ok().map(|file| RecordWriter::new(BufWriter::new(file))));
        let mut version = Event::new();
        version.set_file_version("brain.Event:2".into());
        events.write(version);
        events
    }

    /// Writes the options of the trial.
    pub fn start(&mut self, config: &Config) {
        let options = options(config);
        let mut experiment = Experiment::new();
        experiment.set_hparam_infos(options.iter().map(|(name, value)| info(name, value)).collect());
        experiment.set_metric_infos(metrics(config.data.watched()).iter().map(|tag| metric(tag)).collect());
        let mut session = SessionStartInfo::new();
        session.set_hparams(options.into_iter().collect());
        let (mut first, mut second) = (HParamsPluginData::new(), HParamsPluginData::new());
        first.set_experiment(experiment);
        second.set_session_start_info(session);
        self.summarise(0, vec![hparams("experiment", &first), hparams("session_start_info", &second)]);
    }

    /// Writes the end of the trial.
    pub fn end(&mut self) {
        let (mut session, mut data) = (SessionEndInfo::new(), HParamsPluginData::new());
        session.set_status(Status::STATUS_SUCCESS);
        data.set_session_end_info(session);
        self.summarise(0, vec![hparams("session_end_info", &data)]);
    }

    /// Writes the scalars of an epoch, and a histogram of each tensor.
    pub fn epoch<'t>(&mut self, row: &Row, watched: Watched, tensors: impl IntoIterator<Item = (String, &'t Tensor)>) {
        let [top1, top5, loss, train_loss] = metrics(watched);
        let scalars = [
            (train_loss, row.train_loss),
            ("train/lr".into(), row.lr),
            ("train/images_per_second".into(), row.images_per_second),
            (loss, row.loss),
            (top1, row.top1),
            (top5, row.top5),
        ];
        let averaged = [("ema_top1", row.ema_top1), ("ema_loss", row.ema_loss)].into_iter();
        let averaged = averaged.filter_map(|(tag, value)| Some((format!("{}/{tag}", watched.name()), value?)));
        let scalars = scalars.into_iter().chain(averaged).map(|(tag, value)| {
            let mut summary = tagged(&tag);
            summary.set_simple_value(value as f32);
            summary
        });
        let histograms = tensors.into_iter().filter_map(|(tag, tensor)| {
            let mut summary = tagged(&tag);
            summary.set_histo(histogram(tensor)?);
            Some(summary)
        });
        self.summarise(row.epoch, scalars.chain(histograms).collect());
    }

    fn summarise(&mut self, step: u64, values: Vec<Summary_Value>) {
        let (mut summary, mut event) = (Summary::new(), Event::new());
        summary.set_value(values.into());
        event.set_summary(summary);
        event.set_step(step as i64);
        self.write(event);
    }

    fn write(&mut self, mut event: Event) {
        event.set_wall_time(now());
        let (Some(writer), Ok(bytes)) = (&mut self.0, event.write_to_bytes()) else { return };
        if writer.write(&bytes).and_then(|()| writer.flush()).is_err() {
            self.0 = None;
        }
    }
}

/// Returns the seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0., |time| time.as_secs_f64())
}

fn tagged(tag: &str) -> Summary_Value {
    let mut value = Summary_Value::new();
    value.set_tag(tag.into());
    value
}

/// Returns a message of the HParams plugin, as the metadata of an empty summary.
fn hparams(name: &str, data: &HParamsPluginData) -> Summary_Value {
    let mut plugin = SummaryMetadata_PluginData::new();
    plugin.set_plugin_name("hparams".into());
    plugin.set_content(data.write_to_bytes().unwrap_or_default());
    let mut metadata = SummaryMetadata::new();
    metadata.set_plugin_data(plugin);
    let mut value = tagged(&format!("_hparams_/{name}"));
    value.set_metadata(metadata);
    value
}

fn metric(tag: &str) -> MetricInfo {
    let (mut name, mut info) = (MetricName::new(), MetricInfo::new());
    name.set_tag(tag.into());
    info.set_name(name);
    info
}

fn info(name: &str, value: &Field) -> HParamInfo {
    let mut info = HParamInfo::new();
    info.set_name(name.into());
    info.set_field_type(match value {
        value if value.has_bool_value() => DataType::DATA_TYPE_BOOL,
        value if value.has_number_value() => DataType::DATA_TYPE_FLOAT64,
        _ => DataType::DATA_TYPE_STRING,
    });
    info
}

/// Returns the resolved options by dotted keys, lists as text. Leaves out nulls and `data.root`.
fn options(config: &Config) -> Vec<(String, Field)> {
    let mut found = Vec::new();
    collect("", &config.to_value(), &mut found);
    found.retain(|(key, _)| key != "data.root");
    found
}

fn collect(key: &str, value: &Value, found: &mut Vec<(String, Field)>) {
    let mut option = Field::new();
    match value {
        Value::Mapping(keys) => {
            for (name, value) in keys {
                let name = name.as_str().unwrap_or_default();
                let dotted = if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
                collect(&dotted, value, found);
            }
            return;
        }
        Value::Null | Value::Tagged(_) => return,
        Value::Bool(value) => option.set_bool_value(*value),
        Value::Number(value) => option.set_number_value(value.as_f64().unwrap_or_default()),
        Value::String(value) => option.set_string_value(value.clone()),
        Value::Sequence(values) => {
            let texts = values.iter().map(|value| crate::config::yaml(value).trim_end().to_string());
            option.set_string_value(texts.collect::<Vec<_>>().join(", "));
        }
    }
    found.push((key.to_string(), option));
}

/// Returns a histogram with equally wide buckets between the smallest and the largest value; none
/// if the tensor is empty or holds a value that is not finite.
fn histogram(tensor: &Tensor) -> Option<HistogramProto> {
    let values = tensor.detach().to_kind(Kind::Double).flatten(0, -1);
    if values.numel() == 0 {
        return None;
    }
    let [least, most] = [values.min(), values.max()].map(|value| value.double_value(&[]));
    if !(least.is_finite() && most.is_finite()) {
        return None;
    }
    // Equal values all fall into one bucket: the width is kept above 0.
    let width = ((most - least) / BUCKETS as f64).max(least.abs().max(most.abs()) * 1e-12 + f64::MIN_POSITIVE);
    let places = ((&values - least) / width).floor().clamp(0, BUCKETS - 1).to_kind(Kind::Int64);
    let counts = Vec::<i64>::try_from(places.bincount(None::<Tensor>, BUCKETS)).ok()?;
    let mut histogram = HistogramProto::new();
    histogram.set_min(least);
    histogram.set_max(most);
    histogram.set_num(values.numel() as f64);
    histogram.set_sum(values.sum(Kind::Double).double_value(&[]));
    histogram.set_sum_squares(values.square().sum(Kind::Double).double_value(&[]));
    histogram.set_bucket_limit((1..=BUCKETS).map(|at| least + width * at as f64).collect());
    histogram.set_bucket(counts.into_iter().map(|count| count as f64).collect());
    Some(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_can_not_be_written_are_left_out() {
        let mut events =
            Events(Some(RecordWriter::new(BufWriter::new(File::options().write(true).open("/dev/full").unwrap()))));
        events.end();
        assert!(events.0.is_none());
        events.end();
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Events::new(file.path()).0.is_none(), "no folder can be there");
    }

    #[test]
    fn a_histogram_counts_every_number() {
        let found = histogram(&Tensor::from_slice(&[0., 1., 2., 30., 29.5, 1.5])).unwrap();
        assert_eq!((found.get_min(), found.get_max(), found.get_num(), found.get_sum()), (0., 30., 6., 64.));
        assert_eq!((found.get_bucket()[..3].to_vec(), found.get_bucket()[29]), (vec![1., 2., 1.], 2.));
        assert_eq!((found.get_bucket_limit()[0], found.get_bucket().iter().sum::<f64>()), (1., 6.));
        let equal = histogram(&Tensor::from_slice(&[7.; 5])).unwrap();
        assert_eq!((equal.get_bucket()[0], equal.get_bucket_limit().len()), (5., 30));
        assert!(equal.get_bucket_limit().is_sorted_by(|a, b| a < b));
        assert!(histogram(&Tensor::from_slice(&[1., f64::NAN])).is_none());
        assert!(histogram(&Tensor::from_slice::<f64>(&[])).is_none());
    }
}
