// The sum of batch norms and the activation behind it, as one differentiable function of channels_last maps:
//
//     y = clamp(BN_1(x_1) + ... + BN_n(x_n), low, high)
//
// libtorch runs one batch norm and its ReLU as about nine passes over the map, and each further branch as many again. Four
// are needed: forward one for the moments of each x_i and one that writes y; backward one for the sums of the gradient and
// one that writes the gradients. The mask of the clamp is computed again, so nothing but the x_i is saved.

#include "maps.h"

#include <cstring>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Calls work(first, last) for all rows, on all threads.
template <typename Work>
void over_rows(int64_t rows, Work work) {
    at::parallel_for(0, rows, CHUNK, work);
}

// Adds up `width` sums over all rows: work(first, last, sums) fills those of a chunk.
template <typename Work>
std::vector<double> sum_rows(int64_t rows, int64_t width, Work work) {
    const int64_t chunks = (rows + CHUNK - 1) / CHUNK;
    std::vector<double> partial(chunks * width, 0.), total(width, 0.);
    at::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
        for (int64_t chunk = first; chunk < last; chunk++)
            work(chunk * CHUNK, std::min((chunk + 1) * CHUNK, rows), partial.data() + chunk * width);
    });
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t k = 0; k < width; k++) total[k] += partial[chunk * width + k];
    return total;
}

// The mean and the biased variance of each channel, (2, C) in float64. The first row is the centre of the sums: where the mean
// is large against the deviation, sums around 0 would cancel.
template <typename T>
Tensor moments(const Tensor& x) {
    const int64_t channels = x.size(1), rows = rows_of(x);
    const T* data = x.const_data_ptr<T>();
    auto sums = sum_rows(rows, 2 * channels, [&](int64_t first, int64_t last, double* sums) {
        passes<T>().moments(data, data, channels, first, last, sums);
    });
    Tensor result = at::empty({2, channels}, at::kDouble);
    double* mean = result.data_ptr<double>();
    for (int64_t c = 0; c < channels; c++) {
        const double d = sums[c] / rows;
        mean[c] = data[c] + d;
        mean[channels + c] = std::max(sums[channels + c] / rows - d * d, 0.);
    }
    return result;
}

// The terms as the passes want them. `tensors` keeps alive what `terms` points to.
template <typename T>
struct Prepared {
    std::vector<Tensor> tensors;
    Terms<T> terms;
};

// `maps` are the x_i in channels_last order; `scale` and `centre` (n, C) and `shift` (C) are float64.
template <typename T>
Prepared<T> prepare(at::TensorList maps, const Tensor& scale, const Tensor& centre, const Tensor& shift, double low, double high) {
    const auto type = maps[0].scalar_type();
    Prepared<T> p{{scale.to(type).contiguous(), centre.to(type).contiguous(), shift.to(type).contiguous()}, {}};
    p.terms.n = static_cast<int>(maps.size());
    p.terms.channels = maps[0].size(1);
    for (int i = 0; i < p.terms.n; i++) {
        p.terms.x[i] = maps[i].const_data_ptr<T>();
        p.terms.scale[i] = p.tensors[0].template const_data_ptr<T>() + i * p.terms.channels;
        p.terms.centre[i] = p.tensors[1].template const_data_ptr<T>() + i * p.terms.channels;
    }
    p.terms.shift = p.tensors[2].template const_data_ptr<T>();
    p.terms.low = static_cast<T>(low);
    p.terms.high = static_cast<T>(high);
    return p;
}

template <typename T>
Tensor forward(at::TensorList maps, const Tensor& scale, const Tensor& shift, double low, double high) {
    const auto p = prepare<T>(maps, scale, scale, shift, low, high);
    Tensor y = at::empty_like(maps[0], at::MemoryFormat::ChannelsLast);
    T* out = y.data_ptr<T>();
    over_rows(rows_of(y), [&](int64_t first, int64_t last) { passes<T>().forward(p.terms, first, last, out); });
    return y;
}

// Gradients of the maps, and of the weights (n, C) and the biases (C) in float64. `mean` and `inverse` (1/deviation) are (n, C).
template <typename T>
std::pair<variable_list, std::pair<Tensor, Tensor>> backward(at::TensorList maps, const Tensor& dy, const Tensor& scale,
                                                             const Tensor& mean, const Tensor& inverse, const Tensor& shift,
                                                             double low, double high) {
    const auto p = prepare<T>(maps, scale, mean, shift, low, high);
    const int n = p.terms.n;
    const int64_t channels = p.terms.channels, rows = rows_of(dy);
    const T* gradient = dy.const_data_ptr<T>();
    auto sums = sum_rows(rows, (1 + n) * channels, [&](int64_t first, int64_t last, double* sums) {
        passes<T>().sums(p.terms, gradient, first, last, sums);
    });
    const Tensor all = at::from_blob(sums.data(), {1 + n, channels}, at::kDouble);
    const Tensor bias = all[0].clone();
    // The passes summed around the mean rounded to T; the rest of the mean belongs to the sum of g.
    const Tensor rounding = mean.to(dy.scalar_type()).to(at::kDouble) - mean;
    const Tensor weight = (all.narrow(0, 1, n) + rounding * bias) * inverse;
    // dx = scale * (g - mean(g) - normalised x * mean(g * normalised x)), as a line in x.
    const Tensor slope = -scale * inverse * weight / rows;
    const Tensor offset = -scale * bias / rows - slope * mean;
    const Tensor a = slope.to(dy.scalar_type()).contiguous(), b = offset.to(dy.scalar_type()).contiguous();
    variable_list gradients;
    const T *slopes[MAX_TERMS], *offsets[MAX_TERMS];
    T* dx[MAX_TERMS];
    for (int i = 0; i < n; i++) {
        gradients.push_back(at::empty_like(maps[i], at::MemoryFormat::ChannelsLast));
        slopes[i] = a.const_data_ptr<T>() + i * channels;
        offsets[i] = b.const_data_ptr<T>() + i * channels;
        dx[i] = gradients[i].data_ptr<T>();
    }
    over_rows(rows, [&](int64_t first, int64_t last) {
        passes<T>().backward(p.terms, gradient, slopes, offsets, first, last, dx);
    });
    return {gradients, {weight, bias}};
}

// inputs: n maps, n weights, n biases.
struct NormSum : torch::autograd::Function<NormSum> {
    static Tensor forward(AutogradContext* ctx, at::TensorList inputs, at::TensorList running, double momentum, double eps,
                          double low, double high) {
        const size_t n = inputs.size() / 3;
        std::vector<Tensor> maps, scales, means, inverses;
        Tensor shift = at::zeros({inputs[0].size(1)}, at::kDouble);
        for (size_t i = 0; i < n; i++) {
            maps.push_back(channels_last(inputs[i]));
            const Tensor both = inputs[i].scalar_type() == at::kDouble ? moments<double>(maps[i]) : moments<float>(maps[i]);
            const Tensor mean = both[0], variance = both[1];
            const Tensor inverse = (variance + eps).rsqrt();
            const Tensor scale = inputs[n + i].to(at::kDouble) * inverse;
            const double rows = static_cast<double>(rows_of(maps[i]));
            Tensor running_mean = running[i], running_var = running[n + i];
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean.scalar_type()), momentum);
            // Running variances are unbiased; of one position there is none, and libtorch's is not a number either.
            running_var.mul_(1 - momentum).add_((variance * (rows / (rows - 1))).to(running_var.scalar_type()), momentum);
            shift += inputs[2 * n + i].to(at::kDouble) - scale * mean;
            scales.push_back(scale);
            means.push_back(mean);
            inverses.push_back(inverse);
        }
        const Tensor scale = at::stack(scales), mean = at::stack(means), inverse = at::stack(inverses);
        variable_list saved = maps;
        saved.insert(saved.end(), {scale, mean, inverse, shift});
        ctx->save_for_backward(saved);
        ctx->saved_data["low"] = low;
        ctx->saved_data["high"] = high;
        return maps[0].scalar_type() == at::kDouble ? ::forward<double>(maps, scale, shift, low, high)
                                                    : ::forward<float>(maps, scale, shift, low, high);
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const size_t n = saved.size() - 4;
        const at::TensorList all(saved);
        const at::TensorList maps = all.slice(0, n);
        const Tensor dy = channels_last(gradients[0]);
        const double low = ctx->saved_data["low"].toDouble(), high = ctx->saved_data["high"].toDouble();
        const bool is_double = dy.scalar_type() == at::kDouble;
        auto [dx, affine] = is_double ? ::backward<double>(maps, dy, all[n], all[n + 1], all[n + 2], all[n + 3], low, high)
                                      : ::backward<float>(maps, dy, all[n], all[n + 1], all[n + 2], all[n + 3], low, high);
        variable_list result = dx;
        for (size_t i = 0; i < n; i++) result.push_back(affine.first[i].to(dy.scalar_type()));
        for (size_t i = 0; i < n; i++) result.push_back(affine.second.to(dy.scalar_type()));
        // The running statistics and the four numbers have no gradient.
        result.resize(3 * n + 2 * n + 4);
        return result;
    }
};

}  // namespace

// inputs: n maps (N, C, H, W), n weights (C), n biases (C), n running means, n running variances; all float32 or all float64,
// on the CPU. Returns a new tensor, or null and a message that the caller frees with `free`.
extern "C" Tensor* foldconv_norm_sum(Tensor* const* inputs, int64_t n, double momentum, double eps, double low, double high,
                                     char** error) {
    try {
        std::vector<Tensor> differentiable, running;
        for (int64_t i = 0; i < 3 * n; i++) differentiable.push_back(*inputs[i]);
        for (int64_t i = 3 * n; i < 5 * n; i++) running.push_back(*inputs[i]);
        return new Tensor(NormSum::apply(at::TensorList(differentiable), at::TensorList(running), momentum, eps, low, high));
    } catch (const std::exception& e) {
        *error = strdup(e.what());
        return nullptr;
    }
}
