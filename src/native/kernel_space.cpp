// A map and the 1x1 convolutions on it, in the space of kernels: the moments of the map x (rows, C), and y = clamp(x W' + b) for
// kernels W (C_out, C) that were computed of those moments. Backward, the gradient of x has a part of each y and one of the moments:
//
//     dx = sum of g_i W_i + x M + v,    M = (dS + dS')/rows,  v = (dmean - (dS + dS') mean)/rows
//
// where S is the covariance and g_i the gradient of y_i before its clamp. Autograd alone would make a map for each term and add them;
// here the y_i leave what they know with the node of the moments, which comes last, and that writes dx in one pass.

#include "maps.h"

#include <cstring>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Bytes of a tile of rows: it and what is made of it stay in the cache of a core.
constexpr int64_t TILE_BYTES = 1 << 18;

// Numbers of all partial sums together.
constexpr int64_t PARTIAL = 1 << 21;

int64_t tile_of(int64_t numbers_a_row, int64_t bytes) { return std::clamp<int64_t>(TILE_BYTES / (numbers_a_row * bytes), 64, CHUNK); }

// `rows` rows of `columns` numbers as a tensor.
template <typename T>
Tensor view(const T* data, int64_t rows, int64_t columns) {
    return at::from_blob(const_cast<T*>(data), {rows, columns}, c10::CppTypeToScalarType<T>::value);
}

// Calls work(first, last, sums) for tiles of rows and adds up what it leaves in `sums` (width, float64). The parts don't depend on
// the number of threads.
template <typename Work>
std::vector<double> sum_tiles(int64_t rows, int64_t tile, int64_t width, Work work) {
    const int64_t tiles = (rows + tile - 1) / tile;
    const int64_t parts = std::clamp<int64_t>(PARTIAL / width, 1, std::min<int64_t>(tiles, 64));
    std::vector<double> partial(parts * width, 0.), total(width, 0.);
    at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        for (int64_t part = begin; part < end; part++)
            for (int64_t at = part * tiles / parts; at < (part + 1) * tiles / parts; at++)
                work(at * tile, std::min((at + 1) * tile, rows), partial.data() + part * width);
    });
    for (int64_t part = 0; part < parts; part++)
        for (int64_t k = 0; k < width; k++) total[k] += partial[part * width + k];
    return total;
}

template <typename T>
void add(double* sums, const Tensor& product) {
    const T* from = product.const_data_ptr<T>();
    for (int64_t k = 0; k < product.numel(); k++) sums[k] += from[k];
}

// One map as a term of the passes: clamp(x + shift).
template <typename T>
struct Shifted {
    std::vector<T> ones;
    Terms<T> terms;

    Shifted(const T* x, const T* shift, int64_t channels, double low, double high) : ones(channels, T(1)) {
        terms.n = 1;
        terms.channels = channels;
        terms.x[0] = x;
        terms.scale[0] = ones.data();
        terms.centre[0] = ones.data();
        terms.shift = shift;
        terms.low = static_cast<T>(low);
        terms.high = static_cast<T>(high);
    }
};

bool is_open(double low, double high) { return std::isinf(low) && std::isinf(high); }

// What the node of an y leaves for that of the moments.
struct Use {
    Tensor dy, y, weight;
    double low, high;
};

struct Uses : torch::CustomClassHolder {
    std::vector<Use> all;
};

// The gradient before the clamp, of `rows` rows from `first` on: in `out`, or dy itself where there is no clamp.
template <typename T>
const T* before_clamp(const Use& use, int64_t first, int64_t rows, T* out) {
    const int64_t channels = use.weight.size(0);
    const T* dy = use.dy.const_data_ptr<T>() + first * channels;
    if (is_open(use.low, use.high)) return dy;
    const std::vector<T> zeros(channels, T(0));
    const Shifted<T> y(use.y.const_data_ptr<T>() + first * channels, zeros.data(), channels, use.low, use.high);
    const T *slope = zeros.data(), *offset = zeros.data();
    passes<T>().backward(y.terms, dy, &slope, &offset, 0, rows, &out);
    return out;
}

// Mean (C) and biased covariance (C, C), float64. `centre` (C) is near the mean.
template <typename T>
std::pair<Tensor, Tensor> covariance(const Tensor& x, const std::vector<T>& centre) {
    const int64_t channels = x.size(1), rows = rows_of(x), tile = tile_of(2 * channels, sizeof(T));
    const T* data = x.const_data_ptr<T>();
    std::vector<T> minus(channels);
    for (int64_t c = 0; c < channels; c++) minus[c] = -centre[c];
    const double infinity = std::numeric_limits<double>::infinity();
    const int64_t width = channels * channels + 2 * channels;
    const std::vector<T> zeros(channels, T(0));
    auto sums = sum_tiles(rows, tile, width, [&](int64_t first, int64_t last, double* sums) {
        const int64_t n = last - first;
        const Tensor centred = at::empty({n, channels}, x.scalar_type());
        T* out = centred.data_ptr<T>();
        const Shifted<T> from(data + first * channels, minus.data(), channels, -infinity, infinity);
        passes<T>().forward(from.terms, 0, n, out);
        add<T>(sums, at::mm(centred.t(), centred));
        passes<T>().moments(out, zeros.data(), channels, 0, n, sums + channels * channels);
    });
    Tensor mean = at::empty({channels}, at::kDouble), matrix = at::empty({channels, channels}, at::kDouble);
    double *m = mean.data_ptr<double>(), *s = matrix.data_ptr<double>();
    const double* first = sums.data() + channels * channels;
    for (int64_t i = 0; i < channels; i++) {
        m[i] = centre[i] + first[i] / rows;
        for (int64_t j = 0; j < channels; j++) s[i * channels + j] = (sums[i * channels + j] - first[i] * first[j] / rows) / rows;
    }
    return {mean, matrix};
}

// The mean of a few rows from all over the map.
template <typename T>
std::vector<T> centre_of(const Tensor& x) {
    const int64_t channels = x.size(1), rows = rows_of(x), step = std::max<int64_t>(rows / 64, 1);
    std::vector<double> sums(channels, 0.);
    int64_t n = 0;
    for (int64_t row = 0; row < rows; row += step, n++)
        for (int64_t c = 0; c < channels; c++) sums[c] += x.const_data_ptr<T>()[row * channels + c];
    std::vector<T> centre(channels);
    for (int64_t c = 0; c < channels; c++) centre[c] = static_cast<T>(sums[c] / n);
    return centre;
}

template <typename T>
Tensor gradient(const Tensor& x, const std::vector<Use>& uses, const Tensor& slope, const Tensor& offset) {
    const int64_t channels = x.size(1), rows = rows_of(x);
    int64_t widest = channels;
    for (const Use& use : uses) widest = std::max(widest, use.weight.size(0));
    const int64_t tile = tile_of(2 * channels + widest, sizeof(T));
    const T* data = x.const_data_ptr<T>();
    Tensor dx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    T* out = dx.data_ptr<T>();
    at::parallel_for(0, (rows + tile - 1) / tile, 1, [&](int64_t begin, int64_t end) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        std::vector<T> scratch(tile * widest);
        for (int64_t at = begin; at < end; at++) {
            const int64_t first = at * tile, n = std::min(first + tile, rows) - first;
            Tensor part = view(out + first * channels, n, channels);
            at::addmm_out(part, offset, view(data + first * channels, n, channels), slope);
            for (const Use& use : uses) {
                const T* g = before_clamp<T>(use, first, n, scratch.data());
                part.addmm_(view(g, n, use.weight.size(0)), use.weight);
            }
        }
    });
    return dx;
}

// x -> x again (for the functions on it), its mean and its covariance.
struct Moments : torch::autograd::Function<Moments> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<Uses>& uses) {
        auto [mean, matrix] = x.scalar_type() == at::kDouble ? covariance<double>(x, centre_of<double>(x))
                                                             : covariance<float>(x, centre_of<float>(x));
        ctx->save_for_backward({x, mean});
        ctx->saved_data["uses"] = c10::IValue::make_capsule(uses);
        return {x.variable_data(), mean, matrix};
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &x = saved[0], &mean = saved[1];
        const auto uses = c10::static_intrusive_pointer_cast<Uses>(ctx->saved_data["uses"].toCapsule());
        const double rows = static_cast<double>(rows_of(x));
        Tensor slope = at::zeros({x.size(1), x.size(1)}, at::kDouble), offset = at::zeros({x.size(1)}, at::kDouble);
        if (gradients[1].defined()) offset += gradients[1] / rows;
        if (gradients[2].defined()) {
            slope = (gradients[2] + gradients[2].t()) / rows;
            offset -= slope.mv(mean);
        }
        const auto type = x.scalar_type();
        slope = slope.to(type).contiguous(), offset = offset.to(type).contiguous();
        const std::vector<Use> all = std::move(uses->all);
        uses->all.clear();
        return {type == at::kDouble ? gradient<double>(x, all, slope, offset) : gradient<float>(x, all, slope, offset), Tensor()};
    }
};

template <typename T>
Tensor convolve(const Tensor& x, const Tensor& weight, const Tensor& bias, double low, double high) {
    const int64_t channels = x.size(1), outputs = weight.size(0), rows = rows_of(x);
    const int64_t tile = tile_of(channels + outputs, sizeof(T));
    Tensor y = at::empty({x.size(0), outputs, x.size(2), x.size(3)}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
    const T* data = x.const_data_ptr<T>();
    T* out = y.data_ptr<T>();
    const Tensor transposed = weight.t();
    at::parallel_for(0, (rows + tile - 1) / tile, 1, [&](int64_t begin, int64_t end) {
        const at::AutoDispatchBelowADInplaceOrView no_autograd;
        for (int64_t at = begin; at < end; at++) {
            const int64_t first = at * tile, n = std::min(first + tile, rows) - first;
            Tensor part = view(out + first * outputs, n, outputs);
            at::mm_out(part, view(data + first * channels, n, channels), transposed);
            const Shifted<T> from(out + first * outputs, bias.const_data_ptr<T>(), outputs, low, high);
            passes<T>().forward(from.terms, 0, n, out + first * outputs);
        }
    });
    return y;
}

// The gradients of the kernel (C_out, C) and of the bias (C_out), float64.
template <typename T>
std::pair<Tensor, Tensor> kernel_gradients(const Tensor& x, const Use& use) {
    const int64_t channels = x.size(1), outputs = use.weight.size(0), rows = rows_of(x);
    const int64_t tile = tile_of(channels + 2 * outputs, sizeof(T)), width = outputs * channels + 2 * outputs;
    const T* data = x.const_data_ptr<T>();
    const std::vector<T> zeros(outputs, T(0));
    auto sums = sum_tiles(rows, tile, width, [&](int64_t first, int64_t last, double* sums) {
        const int64_t n = last - first;
        std::vector<T> scratch(is_open(use.low, use.high) ? 0 : n * outputs);
        const T* g = before_clamp<T>(use, first, n, scratch.data());
        add<T>(sums, at::mm(view(g, n, outputs).t(), view(data + first * channels, n, channels)));
        passes<T>().moments(g, zeros.data(), outputs, 0, n, sums + outputs * channels);
    });
    const Tensor all = at::from_blob(sums.data(), {width}, at::kDouble);
    return {all.narrow(0, 0, outputs * channels).reshape({outputs, channels}).clone(), all.narrow(0, outputs * channels, outputs).clone()};
}

// y = clamp(W x + b, low, high) of the first output of Moments.
struct Convolve : torch::autograd::Function<Convolve> {
    static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& bias, double low, double high,
                          const c10::intrusive_ptr<Uses>& uses) {
        const Tensor w = weight.contiguous(), b = bias.contiguous();
        const Tensor y = x.scalar_type() == at::kDouble ? convolve<double>(x, w, b, low, high) : convolve<float>(x, w, b, low, high);
        ctx->save_for_backward({x, w, is_open(low, high) ? Tensor() : y});
        ctx->saved_data["low"] = low;
        ctx->saved_data["high"] = high;
        ctx->saved_data["uses"] = c10::IValue::make_capsule(uses);
        return y;
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor& x = saved[0];
        Use use{channels_last(gradients[0]), saved[2], saved[1], ctx->saved_data["low"].toDouble(), ctx->saved_data["high"].toDouble()};
        const auto type = x.scalar_type();
        auto [weight, bias] = type == at::kDouble ? kernel_gradients<double>(x, use) : kernel_gradients<float>(x, use);
        c10::static_intrusive_pointer_cast<Uses>(ctx->saved_data["uses"].toCapsule())->all.push_back(std::move(use));
        return {Tensor(), weight.to(type), bias.to(type), Tensor(), Tensor(), Tensor()};
    }
};

struct Space {
    c10::intrusive_ptr<Uses> uses;
    Tensor x;
};

template <typename Result, typename Work>
Result guarded(char** error, Work work) {
    try {
        return work();
    } catch (const std::exception& e) {
        *error = strdup(e.what());
        return nullptr;
    }
}

}  // namespace

// The moments of x (N, C, H, W), float32 or float64 on the CPU: a handle that foldconv_space_free frees, and in moments[0] the mean
// (C) and in moments[1] the covariance (C, C), new tensors of float64. Or null and a message that the caller frees with `free`.
extern "C" void* foldconv_space(const Tensor* x, Tensor** moments, char** error) {
    return guarded<void*>(error, [&] {
        auto uses = c10::make_intrusive<Uses>();
        const variable_list all = Moments::apply(channels_last(*x), uses);
        moments[0] = new Tensor(all[1]);
        moments[1] = new Tensor(all[2]);
        return new Space{std::move(uses), all[0]};
    });
}

// y = clamp(W x + b, low, high) for W (C_out, C) and b (C_out) of x's type: a new tensor, or null and a message as above.
extern "C" Tensor* foldconv_space_convolve(const void* space, const Tensor* weight, const Tensor* bias, double low, double high,
                                           char** error) {
    return guarded<Tensor*>(error, [&] {
        const Space& s = *static_cast<const Space*>(space);
        return new Tensor(Convolve::apply(s.x, *weight, *bias, low, high, s.uses));
    });
}

extern "C" void foldconv_space_free(void* space) { delete static_cast<Space*>(space); }
