//! Parameters in one flat buffer.

use tch::{Kind, Tensor};

/// Alignment of each parameter, in bytes: that of libtorch on a CPU, and a multiple of the
/// alignment that CUDA's libraries need.
pub const ALIGNMENT: usize = 64;

/// Places of tensors in a buffer in which each begins at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub struct Segments {
    /// Number of elements of each tensor.
    lengths: Vec<i64>,
    /// Zeros that fill the buffer up to the next address at which a tensor may begin.
    zeros: Tensor,
    /// Index of the tensor of each element, gaps included; made when it is first needed.
    owners: Option<Tensor>,
}

impl Segments {
    /// Places tensors of one precision one after another.
    pub fn new(tensors: &[Tensor]) -> Segments {
        let zeros = tensors.first().map_or_else(Tensor::new, |first| {
            Tensor::zeros([(ALIGNMENT / first.kind().elt_size_in_bytes()) as i64], (first.kind(), first.device()))
        });
        Segments { lengths: tensors.iter().map(|tensor| tensor.numel() as i64).collect(), zeros, owners: None }
    }

    /// Remembers to which tensor each element belongs, for [`Segments::spread`].
    pub fn with_owners(mut self) -> Segments {
        let lengths: Vec<i64> = self.lengths.iter().map(|length| length + self.gap(*length)).collect();
        let device = self.zeros.device();
        let lengths = Tensor::from_slice(&lengths).to_device(device);
        let count = self.lengths.len() as i64;
        self.owners =
            Some(Tensor::arange(count, (Kind::Int64, device)).repeat_interleave_self_tensor(&lengths, 0, None));
        self
    }

    /// Returns the number of zeros behind a tensor with `length` elements.
    fn gap(&self, length: i64) -> i64 {
        let unit = self.zeros.size()[0];
        (unit - length % unit) % unit
    }

    /// Returns the offset of each tensor in the buffer.
    pub fn places(&self) -> Vec<i64> {
        let begin = |next: &mut i64, length: &i64| {
            let place = *next;
            *next += length + self.gap(*length);
            Some(place)
        };
        self.lengths.iter().scan(0, begin).collect()
    }

    /// Concatenates the tensors and the gaps between them into one buffer.
    pub fn flatten(&self, tensors: &[Tensor]) -> Tensor {
        let gap = |tensor: &Tensor| self.zeros.narrow(0, 0, self.gap(tensor.numel() as i64));
        let rows = |tensor: &Tensor| [tensor.reshape([-1]), gap(tensor)];
        let rows: Vec<Tensor> = tensors.iter().flat_map(rows).filter(|row| row.numel() > 0).collect();
        Tensor::cat(&rows, 0)
    }

    /// Returns the part of each tensor in a buffer, as views without the gaps.
    pub fn views(&self, buffer: &Tensor) -> Vec<Tensor> {
        self.places().into_iter().zip(&self.lengths).map(|(place, length)| buffer.narrow(0, place, *length)).collect()
    }

    /// Returns a buffer without the gaps.
    pub fn compact(&self, buffer: &Tensor) -> Tensor {
        Tensor::cat(&self.views(buffer), 0)
    }

    /// Sets a buffer from one without gaps.
    ///
    /// # Errors
    /// The number of elements is another.
    pub fn expand(&self, buffer: &Tensor, compact: &Tensor) -> anyhow::Result<()> {
        let count: i64 = self.lengths.iter().sum();
        anyhow::ensure!(compact.size() == [count], "the optimizer's state is of another network");
        for (mut own, given) in self.views(buffer).into_iter().zip(compact.f_split_with_sizes(&self.lengths, 0)?) {
            own.f_copy_(&given)?;
        }
        Ok(())
    }

    /// Returns the Euclidean norm of each tensor in the front part of a buffer, which ends where a
    /// tensor ends.
    pub fn norms(&self, front: &Tensor) -> Tensor {
        let inside = |place: &i64| *place < front.size()[0];
        let count = self.places().iter().take_while(|place| inside(place)).count();
        let parts = self.places().into_iter().zip(&self.lengths).take(count);
        Tensor::stack(&parts.map(|(place, length)| front.narrow(0, place, *length).norm()).collect::<Vec<_>>(), 0)
    }

    /// Returns one number of each tensor, repeated for its elements, for the first `length`
    /// elements of a buffer.
    pub fn spread(&self, values: &Tensor, length: i64) -> Tensor {
        match &self.owners {
            Some(owners) => values.index_select(0, &owners.narrow(0, 0, length)),
            None => values.shallow_clone(),
        }
    }
}

/// Moves variables into one buffer, of which they become views.
pub fn flattened(variables: &[Tensor]) -> (Segments, Tensor) {
    let segments = Segments::new(variables);
    let flat = tch::no_grad(|| segments.flatten(variables));
    for (variable, view) in variables.iter().zip(segments.views(&flat)) {
        variable.shallow_clone().set_data(&view.view(variable.size().as_slice()));
    }
    (segments, flat)
}
