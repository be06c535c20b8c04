// Kernel space: the moments of a map x (rows, C), and y = clamp(x W' + b), or a sum of such
// products of several maps, for 1x1 kernels W (C_out, C) that were computed from these moments. In
// the backward pass the gradient of x has a part from each y and one from the moments:
//
//     dx = sum of g_i W_i + x M + v,    M = (dS + dS')/rows,  v = dmean/rows - M mean
//
// where S is the covariance and g_i the gradient of y_i before its clamp. Autograd alone would make
// a map for each term and add them. Here the nodes of the y_i store their gradients with the node
// of the moments, which runs last and writes dx in one pass. All of this is for the whole batch, or
// for each sample by itself; a group is the set of rows that share moments and kernels.

#include "guarded.h"
#include "maps.h"


namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Numbers in a tile of rows. The tile and its products stay in the cache of a core.
constexpr int64_t TILE_NUMBERS = 1 << 15;

// Limit of the numbers in all partial sums together.
constexpr int64_t PARTIAL = 1 << 21;

// The rows of a map, in groups that have their own moments and kernels.
struct Groups {
    int64_t count, rows, channels;

    Groups(const Tensor& x, bool per_sample)
        : count(per_sample ? x.size(0) : 1), rows(rows_of(x) / (per_sample ? x.size(0) : 1)), channels(x.size(1)) {}

    int64_t tile(int64_t numbers_a_row) const { return std::clamp<int64_t>(TILE_NUMBERS / numbers_a_row, 32, 512); }

    // Calls work(group, first, last) for tiles of rows; rows are counted over all groups.
    template <typename Work>
    void over_tiles(int64_t tile, Work work) const {
        const int64_t tiles = (rows + tile - 1) / tile;
        at::parallel_for(0, count * tiles, 1, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; at++) {
                const int64_t group = at / tiles, first = at % tiles * tile;
                work(group, group * rows + first, group * rows + std::min(first + tile, rows));
            }
        });
    }

    // Calls work(group, first, last, sums) for tiles of rows and returns the totals (count, width),
    // in float64, of the numbers that it adds to `sums`. The partition does not depend on the
    // number of threads.
    template <typename Work>
    Tensor sum_tiles(int64_t tile, int64_t width, Work work) const {
        const int64_t tiles = (rows + tile - 1) / tile, most = std::max<int64_t>(64 / count, 1);
        const int64_t parts = std::clamp<int64_t>(PARTIAL / (width * count), 1, std::min(tiles, most));
        Tensor partial = at::zeros({count, parts, width}, at::kDouble);
        double* sums = partial.data_ptr<double>();
        at::parallel_for(0, count * parts, 1, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; at++) {
                const int64_t group = at / parts, part = at % parts;
                for (int64_t t = part * tiles / parts; t < (part + 1) * tiles / parts; t++)
                    work(group, group * rows + t * tile, group * rows + std::min((t + 1) * tile, rows), sums + at * width);
            }
        });
        return parts == 1 ? partial.squeeze(1) : partial.sum(1);
    }
};

// Data that the node of a y stores for the node of the moments.
struct Use {
    Tensor dy, y, weight;  // the weight (C_out, C), or (N, C_out, C), in x's type
    double low, high;

    int64_t outputs() const { return weight.size(-2); }

    // Computes the gradient before the clamp for some rows, in `out`, and adds up its columns in
    // `sums`.
    template <typename T>
    void before_clamp(int64_t first, int64_t rows, T* out, double* sums) const {
        const int64_t n = outputs();
        const T* gradient = dy.const_data_ptr<T>() + first * n;
        if (y.defined())
            return products<T>().masked(gradient, y.const_data_ptr<T>() + first * n, static_cast<T>(low), static_cast<T>(high), n, rows,
                                        out, sums);
        const std::vector<T> zeros(n, T(0));
        products<T>().centred(gradient, zeros.data(), n, rows, out, sums);
    }
};

struct Uses : torch::CustomClassHolder {
    bool per_sample;
    std::vector<Use> all;

    explicit Uses(bool per_sample) : per_sample(per_sample) {}
};

// Returns the mean of a few rows from all parts of the map.
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

// Returns the mean (groups, C) and the biased covariance (groups, C, C), in float64.
template <typename T>
std::pair<Tensor, Tensor> moments(const Tensor& x, const Groups& groups) {
    const int64_t channels = groups.channels, squares = channels * channels, tile = groups.tile(2 * channels);
    const T* data = x.const_data_ptr<T>();
    const std::vector<T> centre = centre_of<T>(x);
    const Tensor sums = groups.sum_tiles(tile, squares + channels, [&](int64_t, int64_t first, int64_t last, double* sums) {
        std::vector<T> d((last - first) * channels);
        products<T>().centred(data + first * channels, centre.data(), channels, last - first, d.data(), sums + squares);
        products<T>().outer(d.data(), channels, d.data(), channels, last - first, sums);
    });
    const Tensor mean = at::empty({groups.count, channels}, at::kDouble), matrix = at::empty({groups.count, channels, channels}, at::kDouble);
    const double* from = sums.const_data_ptr<double>();
    double *to_mean = mean.data_ptr<double>(), *to_matrix = matrix.data_ptr<double>();
    at::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
        std::vector<double> around(channels);
        for (int64_t group = begin; group < end; group++) {
            const double* sum = from + group * (squares + channels);
            for (int64_t c = 0; c < channels; c++) {
                around[c] = sum[squares + c] / groups.rows;
                to_mean[group * channels + c] = around[c] + centre[c];
            }
            double* row = to_matrix + group * squares;
            for (int64_t i = 0; i < channels; i++, sum += channels, row += channels)
                for (int64_t j = 0; j < channels; j++) row[j] = sum[j] / groups.rows - around[i] * around[j];
        }
    });
    return {mean, matrix};
}

// Returns M (groups, C, C) and v (groups, C), in T, from the gradients of mean and covariance,
// which may be undefined.
template <typename T>
std::pair<std::vector<T>, std::vector<T>> line(const Groups& groups, const Tensor& mean, const Tensor& dmean, const Tensor& dcovariance) {
    const int64_t channels = groups.channels, squares = channels * channels;
    std::vector<T> slopes(groups.count * squares), offsets(groups.count * channels);
    const Tensor first = dmean.defined() ? dmean.contiguous() : Tensor(), second = dcovariance.defined() ? dcovariance.contiguous() : Tensor();
    at::parallel_for(0, groups.count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t group = begin; group < end; group++) {
            const double* middle = mean.const_data_ptr<double>() + group * channels;
            const double* d = second.defined() ? second.const_data_ptr<double>() + group * squares : nullptr;
            for (int64_t i = 0; i < channels; i++) {
                double offset = first.defined() ? first.const_data_ptr<double>()[group * channels + i] / groups.rows : 0;
                for (int64_t j = 0; d && j < channels; j++) {
                    const double slope = (d[i * channels + j] + d[j * channels + i]) / groups.rows;
                    slopes[group * squares + i * channels + j] = static_cast<T>(slope);
                    offset -= slope * middle[j];
                }
                offsets[group * channels + i] = static_cast<T>(offset);
            }
        }
    });
    return {slopes, offsets};
}

// Returns dx, from the stored uses and the gradients of mean and covariance.
template <typename T>
Tensor gradient(const Tensor& x, const Groups& groups, const std::vector<Use>& uses, const Tensor& mean, const Tensor& dmean,
                const Tensor& dcovariance) {
    const int64_t channels = groups.channels;
    const auto [slope, offset] = line<T>(groups, mean, dmean, dcovariance);
    int64_t widest = 1;
    for (const Use& use : uses) widest = std::max(widest, use.outputs());
    const T *data = x.const_data_ptr<T>(), *slopes = slope.data(), *offsets = offset.data();
    const T infinity = std::numeric_limits<T>::infinity();
    const Tensor dx = at::empty_like(x, at::MemoryFormat::ChannelsLast);
    T* out = dx.data_ptr<T>();
    const Products<T>& loops = products<T>();
    groups.over_tiles(groups.tile(2 * channels + widest), [&](int64_t group, int64_t first, int64_t last) {
        const int64_t n = last - first;
        T* to = out + first * channels;
        loops.multiply(data + first * channels, channels, slopes + group * channels * channels, channels, offsets + group * channels,
                       -infinity, infinity, n, to);
        std::vector<T> g(n * widest);
        std::vector<double> unused(widest);
        for (const Use& use : uses) {
            use.before_clamp(first, n, g.data(), unused.data());
            const T* weight = use.weight.const_data_ptr<T>() + group * use.outputs() * channels;
            loops.accumulate(g.data(), use.outputs(), weight, channels, -infinity, infinity, n, to);
        }
    });
    return dx;
}

// Returns x itself (for the convolutions of it), its mean and its covariance: (C) and (C, C), or
// (N, C) and (N, C, C) per sample.
struct Moments : torch::autograd::Function<Moments> {
    static variable_list forward(AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<Uses>& uses) {
        const Groups groups(x, uses->per_sample);
        auto [mean, matrix] = x.scalar_type() == at::kDouble ? moments<double>(x, groups) : moments<float>(x, groups);
        // Outputs that nothing reads have no gradient. Otherwise autograd would write a map of
        // zeros that is not read.
        ctx->set_materialize_grads(false);
        ctx->save_for_backward({x, mean});
        ctx->saved_data["uses"] = c10::IValue::make_capsule(uses);
        if (uses->per_sample) return {x.variable_data(), mean, matrix};
        return {x.variable_data(), mean.squeeze(0), matrix.squeeze(0)};
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const Tensor &x = saved[0], &mean = saved[1];
        const auto uses = c10::static_intrusive_pointer_cast<Uses>(ctx->saved_data["uses"].toCapsule());
        const Groups groups(x, uses->per_sample);
        const std::vector<Use> all = std::move(uses->all);
        uses->all.clear();
        return {x.scalar_type() == at::kDouble ? gradient<double>(x, groups, all, mean, gradients[1], gradients[2])
                                               : gradient<float>(x, groups, all, mean, gradients[1], gradients[2]),
                Tensor()};
    }
};

// The maps that a y is made of: channels and first number of each.
template <typename T>
struct Inputs {
    std::vector<int64_t> channels;
    std::vector<const T*> data;
    int64_t total = 0;

    explicit Inputs(at::TensorList maps) {
        for (const Tensor& map : maps) {
            channels.push_back(map.size(1));
            data.push_back(map.const_data_ptr<T>());
            total += map.size(1);
        }
    }

    size_t size() const { return channels.size(); }
};

// Computes y. The weights are transposed: (groups, C_i, C_out).
template <typename T>
Tensor convolve(at::TensorList maps, const Groups& groups, at::TensorList weights, const Tensor& bias, double low, double high) {
    const Inputs<T> x(maps);
    const Tensor& map = maps[0];
    const int64_t outputs = weights[0].size(-1);
    const Tensor y = at::empty({map.size(0), outputs, map.size(2), map.size(3)}, map.options().memory_format(at::MemoryFormat::ChannelsLast));
    const T infinity = std::numeric_limits<T>::infinity(), least = static_cast<T>(low), most = static_cast<T>(high);
    const T* shifts = bias.const_data_ptr<T>();
    T* out = y.data_ptr<T>();
    const Products<T>& loops = products<T>();
    groups.over_tiles(groups.tile(x.total + outputs), [&](int64_t group, int64_t first, int64_t last) {
        const int64_t n = last - first;
        T* to = out + first * outputs;
        for (size_t i = 0; i < x.size(); i++) {
            const bool ends = i + 1 == x.size();
            const T a = ends ? least : -infinity, b = ends ? most : infinity;
            const T *from = x.data[i] + first * x.channels[i], *w = weights[i].const_data_ptr<T>() + group * x.channels[i] * outputs;
            if (i == 0)
                loops.multiply(from, x.channels[i], w, outputs, shifts + group * outputs, a, b, n, to);
            else
                loops.accumulate(from, x.channels[i], w, outputs, a, b, n, to);
        }
    });
    return y;
}

// Returns the gradients of the kernels (groups, C_out, C_i), one for each map, and of the biases
// (groups, C_out), in float64.
template <typename T>
variable_list kernel_gradients(at::TensorList maps, const Groups& groups, const Use& use) {
    const Inputs<T> x(maps);
    const int64_t outputs = use.outputs(), biases = outputs * x.total;
    const Tensor sums =
        groups.sum_tiles(groups.tile(x.total + 2 * outputs), biases + outputs, [&](int64_t, int64_t first, int64_t last, double* sums) {
            const int64_t n = last - first;
            std::vector<T> g(n * outputs);
            use.before_clamp(first, n, g.data(), sums + biases);
            for (size_t i = 0; i < x.size(); sums += outputs * x.channels[i], i++) {
                const T* from = x.data[i] + first * x.channels[i];
                // The wider matrix fills the vectors better.
                if (outputs > x.channels[i])
                    products<T>().outer(from, x.channels[i], g.data(), outputs, n, sums);
                else
                    products<T>().outer(g.data(), outputs, from, x.channels[i], n, sums);
            }
        });
    variable_list all;
    int64_t at = 0;
    for (const int64_t channels : x.channels) {
        const Tensor part = sums.narrow(1, at, outputs * channels);
        all.push_back(outputs > channels ? part.reshape({-1, channels, outputs}).transpose(1, 2) : part.reshape({-1, outputs, channels}));
        at += outputs * channels;
    }
    all.push_back(sums.narrow(1, biases, outputs));
    return all;
}

struct AllUses : torch::CustomClassHolder {
    std::vector<c10::intrusive_ptr<Uses>> spaces;
};

// Computes y = clamp(sum of W_i x_i + b, low, high) from the first outputs of Moments.
struct Convolve : torch::autograd::Function<Convolve> {
    static Tensor forward(AutogradContext* ctx, at::TensorList maps, at::TensorList weights, const Tensor& bias, double low, double high,
                          const c10::intrusive_ptr<AllUses>& uses) {
        const auto type = maps[0].scalar_type();
        const Groups groups(maps[0], uses->spaces[0]->per_sample);
        variable_list saved(maps.begin(), maps.end()), transposed;
        for (const Tensor& weight : weights) {
            saved.push_back(weight.to(type).contiguous());
            transposed.push_back(saved.back().transpose(-1, -2).contiguous());
        }
        const Tensor b = bias.to(type).contiguous();
        const Tensor y = type == at::kDouble ? convolve<double>(maps, groups, transposed, b, low, high)
                                             : convolve<float>(maps, groups, transposed, b, low, high);
        saved.push_back(std::isinf(low) && std::isinf(high) ? Tensor() : y);
        ctx->save_for_backward(saved);
        ctx->saved_data["low"] = low;
        ctx->saved_data["high"] = high;
        ctx->saved_data["uses"] = c10::IValue::make_capsule(uses);
        ctx->saved_data["type"] = static_cast<int64_t>(bias.scalar_type());
        return y;
    }

    static variable_list backward(AutogradContext* ctx, variable_list gradients) {
        const auto saved = ctx->get_saved_variables();
        const size_t n = saved.size() / 2;
        const at::TensorList maps = at::TensorList(saved).slice(0, n);
        const auto uses = c10::static_intrusive_pointer_cast<AllUses>(ctx->saved_data["uses"].toCapsule());
        const bool per_sample = uses->spaces[0]->per_sample;
        const Groups groups(maps[0], per_sample);
        Use use{channels_last(gradients[0]), saved[2 * n], saved[n], ctx->saved_data["low"].toDouble(), ctx->saved_data["high"].toDouble()};
        const variable_list parts = maps[0].scalar_type() == at::kDouble ? kernel_gradients<double>(maps, groups, use)
                                                                         : kernel_gradients<float>(maps, groups, use);
        const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
        variable_list result(n);
        for (const Tensor& part : parts) result.push_back((per_sample ? part : part.squeeze(0)).to(type));
        for (size_t i = 0; i < n; i++) {
            use.weight = saved[n + i];
            uses->spaces[i]->all.push_back(use);
        }
        result.resize(2 * n + 4);
        return result;
    }
};

struct Space {
    c10::intrusive_ptr<Uses> uses;
    Tensor x;
};

}  // namespace

// Computes the moments of x (N, C, H, W), float32 or float64 on the CPU: a handle in `space` that
// foldconv_space_free frees, the mean in moments[0] and the covariance in moments[1] as new float64
// tensors: (C) and (C, C), or (N, C) and (N, C, C) per sample. Returns null, or a message that the
// caller frees with `free`.
extern "C" char* foldconv_space(const Tensor* x, bool per_sample, void** space, Tensor** moments) {
    return guarded([&] {
        auto uses = c10::make_intrusive<Uses>(per_sample);
        const variable_list all = Moments::apply(channels_last(*x), uses);
        moments[0] = new Tensor(all[1]);
        moments[1] = new Tensor(all[2]);
        *space = new Space{std::move(uses), all[0]};
    });
}

// Computes y = clamp(sum of W_i x_i + b, low, high), a new tensor, from n maps, for W_i (C_out, C_i)
// and b (C_out), or W_i (N, C_out, C_i) and b (N, C_out) per sample. Returns null, or a message that
// the caller frees with `free`.
extern "C" char* foldconv_space_convolve(const void* const* spaces, const Tensor* const* weights, int64_t n, const Tensor* bias, double low,
                                         double high, Tensor** y) {
    return guarded([&] {
        auto uses = c10::make_intrusive<AllUses>();
        variable_list maps, kernels;
        for (int64_t i = 0; i < n; i++) {
            const Space& space = *static_cast<const Space*>(spaces[i]);
            uses->spaces.push_back(space.uses);
            maps.push_back(space.x);
            kernels.push_back(*weights[i]);
        }
        *y = new Tensor(Convolve::apply(at::TensorList(maps), at::TensorList(kernels), *bias, low, high, uses));
    });
}

extern "C" void foldconv_space_free(void* space) { delete static_cast<Space*>(space); }
