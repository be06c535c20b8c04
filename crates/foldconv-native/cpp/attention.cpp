// Operations of attention on channels_last maps.
//
// Pool: the mean over the positions of each sample. Its gradient is added to that of the other
// operations on the map in one pass, where autograd would write it to a separate map.
//
// Weigh: a weight for each channel and sample, u = a h. The backward pass computes dh = a du and da
// = sum over positions of h du in one pass. libtorch processes only a few channels at a time.

#include "guarded.h"
#include "maps.h"


namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Returns x (N, C, H, W) times a (N, C), and the sums (N, C) of x times other over positions, in
// float64.
template <typename T>
std::pair<Tensor, Tensor> weighed(const Tensor& x, const Tensor& a, const Tensor& other) {
    const int64_t channels = x.size(1), rows = x.size(2) * x.size(3);
    const Tensor out = at::empty_like(x, at::MemoryFormat::ChannelsLast), sums = at::zeros_like(a, at::kDouble);
    const T *from = x.const_data_ptr<T>(), *weights = a.const_data_ptr<T>(), *factors = other.const_data_ptr<T>();
    T* to = out.data_ptr<T>();
    double* total = sums.data_ptr<double>();
    at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
        for (int64_t sample = begin; sample < end; sample++)
            for (int64_t row = 0; row < rows; row += CHUNK) {
                const int64_t at = (sample * rows + row) * channels, c = sample * channels;
                products<T>().weighed(from + at, weights + c, factors + at, channels, std::min(CHUNK, rows - row), to + at, total + c);
            }
    });
    return {out, sums};
}

struct Weigh : torch::autograd::Function<Weigh> {
    static Tensor forward(AutogradContext* ctx, const Tensor& map, const Tensor& gates) {
        const Tensor h = channels_last(map), a = gates.to(h.scalar_type()).contiguous();
        ctx->save_for_backward({h, a});
        ctx->saved_data["type"] = static_cast<int64_t>(gates.scalar_type());
        return h.scalar_type() == at::kDouble ? weighed<double>(h, a, h).first : weighed<float>(h, a, h).first;
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor du = channels_last(gradients[0]);
        const auto [dh, da] = du.scalar_type() == at::kDouble ? weighed<double>(du, saved[1], saved[0]) : weighed<float>(du, saved[1], saved[0]);
        return {dh, da.to(static_cast<at::ScalarType>(ctx->saved_data["type"].toInt()))};
    }
};

// Returns the means (N, C) of x over the positions, in float64.
template <typename T>
Tensor means(const Tensor& x) {
    const int64_t channels = x.size(1), rows = x.size(2) * x.size(3);
    Tensor sums = at::zeros({x.size(0), 2 * channels}, at::kDouble);
    const T* from = x.const_data_ptr<T>();
    const std::vector<T> zeros(channels, T(0));
    double* total = sums.data_ptr<double>();
    at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
        for (int64_t sample = begin; sample < end; sample++)
            passes<T>().moments(from, zeros.data(), channels, sample * rows, (sample + 1) * rows, total + sample * 2 * channels);
    });
    return sums.narrow(1, 0, channels) / rows;
}

// Returns x plus a number (N, C) per channel and sample.
template <typename T>
Tensor shifted(const Tensor& x, const Tensor& by) {
    const int64_t channels = x.size(1), rows = x.size(2) * x.size(3);
    const Tensor out = at::empty_like(x, at::MemoryFormat::ChannelsLast), minus = (-by).to(x.scalar_type()).contiguous();
    const T *from = x.const_data_ptr<T>(), *centres = minus.const_data_ptr<T>();
    T* to = out.data_ptr<T>();
    at::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
        std::vector<double> unused(channels);
        for (int64_t sample = begin; sample < end; sample++) {
            const int64_t at = sample * rows * channels;
            products<T>().centred(from + at, centres + sample * channels, channels, rows, to + at, unused.data());
        }
    });
    return out;
}

// Returns x itself and its means.
struct Pool : torch::autograd::Function<Pool> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x) {
        ctx->set_materialize_grads(false);
        ctx->saved_data["positions"] = x.size(2) * x.size(3);
        ctx->saved_data["double"] = x.scalar_type() == at::kDouble;
        ctx->saved_data["size"] = x.sizes();
        return {x.variable_data(), x.scalar_type() == at::kDouble ? means<double>(x) : means<float>(x)};
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        if (!gradients[1].defined()) return {gradients[0]};
        const bool is_double = ctx->saved_data["double"].toBool();
        const Tensor by = gradients[1] / ctx->saved_data["positions"].toInt();
        const Tensor dx = gradients[0].defined() ? channels_last(gradients[0])
                                                 : at::zeros(ctx->saved_data["size"].toIntVector(), is_double ? at::kDouble : at::kFloat)
                                                       .contiguous(at::MemoryFormat::ChannelsLast);
        return {is_double ? shifted<double>(dx, by) : shifted<float>(dx, by)};
    }
};

}  // namespace

// Computes pooled[0], which is x (N, C, H, W), float32 or float64 on the CPU, for all further
// operations on it, and pooled[1], its means (N, C) in float64. Both are new tensors. Returns null,
// or a message that the caller frees with `free`.
extern "C" char* foldconv_pool(const Tensor* x, Tensor** pooled) {
    return guarded([&] {
        const variable_list all = Pool::apply(channels_last(*x));
        pooled[0] = new Tensor(all[0]);
        pooled[1] = new Tensor(all[1]);
    });
}

// Computes `weighed`, a new tensor: a h for a map h (N, C, H, W), float32 or float64 on the CPU,
// and a (N, C). Returns null, or a message that the caller frees with `free`.
extern "C" char* foldconv_weigh(const Tensor* map, const Tensor* gates, Tensor** weighed) {
    return guarded([&] { *weighed = new Tensor(Weigh::apply(*map, *gates)); });
}
