// A weight for each channel and sample of a channels_last map, u = a h, and backward dh = a du and da = sum over positions of h du in one
// pass. libtorch's product runs over a few channels at a time, and its sums are another pass.

#include "maps.h"

#include <cstring>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// x (N, C, H, W) times a (N, C), and the sums (N, C) of x times other, float64.
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

}  // namespace

// a h for a map h (N, C, H, W), float32 or float64 on the CPU, and a (N, C): a new tensor, or null and a message that the caller frees
// with `free`.
extern "C" Tensor* foldconv_weigh(const Tensor* map, const Tensor* gates, char** error) {
    try {
        return new Tensor(Weigh::apply(*map, *gates));
    } catch (const std::exception& e) {
        *error = strdup(e.what());
        return nullptr;
    }
}
